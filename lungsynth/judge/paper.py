"""Figures of the paper (Chi et al., 2023), to stand in a column beside ours, and the methods by their names there.

The paper measured on LUNA16 and does not say how; its figures are not those of our test patients.
"""

from collections.abc import Mapping

__all__ = ["METHOD_NAMES", "TABLE_1"]

# In the paper's order; the last is the product's.
METHOD_NAMES: Mapping[str, str] = {
    "cnn_vgg": "CNN+VGG",
    "faster_rcnn_3d": "Faster R-CNN + 3D DCNN",
    "unet": "U-Net",
    "unet_plus_plus": "U-Net++",
    "dense_unet": "Dense U-Net (this method)",
}

TABLE_1: Mapping[str, Mapping[str, float]] = {
    "cnn_vgg": {"sensitivity": 0.9132, "accuracy": 0.9264},
    "faster_rcnn_3d": {"sensitivity": 0.9354, "nodules_per_scan": 15.0},
    "unet": {"sensitivity": 0.932, "nodules_per_scan": 8.0, "accuracy": 0.873},
    "unet_plus_plus": {"sensitivity": 0.897, "nodules_per_scan": 32.5},
    "dense_unet": {"sensitivity": 0.943, "nodules_per_scan": 12.2, "accuracy": 0.963},
}
