"""Figures of the paper (Chi et al., 2023), to stand in a column beside ours, and the methods by their names there.

The paper measured on LUNA16 and does not say how; its figures are not those of our test patients.
"""

from collections.abc import Mapping

__all__ = ["DETECTOR_NAMES", "GENERATOR_NAMES", "TABLE_1", "TABLE_2", "TABLE_3"]

# Of Table I, in the paper's order; the last is the product's.
DETECTOR_NAMES: Mapping[str, str] = {
    "cnn_vgg": "CNN+VGG",
    "faster_rcnn_3d": "Faster R-CNN + 3D DCNN",
    "unet": "U-Net",
    "unet_plus_plus": "U-Net++",
    "dense_unet_equal": "Dense U-Net, same budget",
    "dense_unet": "Dense U-Net (this method)",
}

TABLE_1: Mapping[str, Mapping[str, float]] = {
    "cnn_vgg": {"sensitivity": 0.9132, "accuracy": 0.9264},
    "faster_rcnn_3d": {"sensitivity": 0.9354, "nodules_per_scan": 15.0},
    "unet": {"sensitivity": 0.932, "nodules_per_scan": 8.0, "accuracy": 0.873},
    "unet_plus_plus": {"sensitivity": 0.897, "nodules_per_scan": 32.5},
    "dense_unet": {"sensitivity": 0.943, "nodules_per_scan": 12.2, "accuracy": 0.963},
}

# Of Table II; the last is the product's.
GENERATOR_NAMES: Mapping[str, str] = {
    "gan": "GAN",
    "dcgan": "DCGAN",
    "wgan": "WGAN-GP",
    "biggan": "BigGAN (small)",
    "capsulenets": "CapsuleNets",
    "w_capsulegan_equal": "W-CapsuleGAN, same budget",
    "w_capsulegan": "W-CapsuleGAN (this method)",
}

# The Inception Score is that of ImageNet's classes (it may exceed the number of ours); n is not stated.
TABLE_2: Mapping[str, Mapping[str, float]] = {
    "biggan": {"inception_score": 1.6, "fid": 233.0},
    "gan": {"inception_score": 5.4, "fid": 74.2},
    "dcgan": {"inception_score": 5.9, "fid": 84.3},
    "wgan": {"inception_score": 7.2, "fid": 54.5},
    "capsulenets": {"inception_score": 7.5, "fid": 102.1},
    "w_capsulegan": {"inception_score": 7.9, "fid": 30.2},
}

# Whole diseased slices; likewise.
TABLE_3: Mapping[str, Mapping[str, float]] = {
    "biggan": {"inception_score": 1.3, "fid": 418.0},
    "gan": {"inception_score": 4.7, "fid": 202.9},
    "dcgan": {"inception_score": 6.9, "fid": 184.1},
    "wgan": {"inception_score": 5.2, "fid": 147.7},
    "two_stage": {"inception_score": 12.1, "fid": 2.6},
}
