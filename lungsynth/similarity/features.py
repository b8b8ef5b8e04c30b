"""Feature networks: images become vectors, whose distances say how similar samples are.

`domain` is this package's own, a small CNN that learnt what radiologists say of a nodule, or where a lung slice lies
(scripts/train_features.py). Its features are the activations before the heads, scaled by their mean and spread over the
training samples, so that a distance has the unit of that spread, and saturating at two spreads. They are few (64),
because FID with F features needs many more than F samples.

`inception` is Inception-v3 with torch-fidelity's weights, where the user has both. A path is any TorchScript file that
maps (B, 1, S, S) in [-1, 1] to (B, F).
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lungsynth.bundles import read_weights_file
from lungsynth.errors import InputError
from lungsynth.hounsfield import NETWORK_WINDOW
from lungsynth.io.atomic import write_bytes, write_json
from lungsynth.similarity.samples import SampleKind
from lungsynth.types import HuPlanes

__all__ = [
    "WEIGHTS",
    "FeatureNetwork",
    "FeatureSet",
    "Features",
    "load_feature_network",
    "open_features",
    "pairwise_distance",
    "save_feature_network",
    "unit_images",
]


WEIGHTS = Path(__file__).resolve().parent / "weights"
_BATCH = 64  # images at a time: memory alone
_INCEPTION_PX = 299  # width of the images that Inception-v3 was trained on
_NETWORK_OF: Mapping[SampleKind, SampleKind] = {"slices": "lungs"}  # whole slices are seen by the lungs' network

Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureSet:
    """Features of N images.

    Args:
        vectors: (N, F).
        probabilities: (N, K) of the network's classes; None where it has none.
    """

    vectors: Float[np.ndarray, "n features"]
    probabilities: Float[np.ndarray, "n classes"] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """A feature network.

    Args:
        name: in tables.
        forward: (B, 1, S, S) in [-1, 1] -> features (B, F), and logits (B, K) or None.
        classes: names of the K classes, as far as known.
        identity: changes with the network.
        sidecar: of its weights; empty for a network of the user's.
    """

    name: str
    forward: Forward
    classes: tuple[str, ...] = ()
    identity: str
    sidecar: Mapping[str, Any]

    def __call__(self, hu: HuPlanes) -> FeatureSet:
        """Features of images (N, S, S) in HU.

        Raises:
            InputError: when the network fails on such images, or returns no (N, F).
        """
        try:
            with torch.inference_mode():
                parts = [self.forward(unit_images(part)) for part in _batches(hu)]
            vectors = torch.cat([vectors for vectors, _ in parts]).float().numpy()
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"`features` {self.name}: fails on images {hu.shape} ({str(error).splitlines()[-1]}). It must map "
                "(B, 1, S, S) in [-1, 1] to (B, F)."
            ) from error
        if vectors.shape[:1] != hu.shape[:1] or vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise InputError(f"`features` {self.name}: expected finite (N, F) for {hu.shape}, got {vectors.shape}.")
        logits = [logits for _, logits in parts if logits is not None]
        probabilities = torch.softmax(torch.cat(logits).double(), dim=1).numpy() if logits else None
        return FeatureSet(vectors=vectors.astype(np.float64), probabilities=probabilities)


def open_features(name: str, kind: SampleKind) -> Features:
    """Opens a feature network.

    Args:
        name: `domain`, `inception`, or a TorchScript file.
        kind: of the samples; the domain's network is another for each.

    Raises:
        InputError: when the file or the packages for it are missing.
    """
    if name == "domain":
        return _domain(kind)
    if name == "inception":
        return _inception()
    return _torchscript(Path(name))


def unit_images(hu: HuPlanes) -> Tensor:
    """What the networks see: float32 (N, 1, S, S), the window [-1000, 400] HU mapped to [-1, 1]."""
    return torch.from_numpy(NETWORK_WINDOW.to_unit(hu.astype(np.float32)))[:, None]


def pairwise_distance(
    a: Float[np.ndarray, "a features"], b: Float[np.ndarray, "b features"]
) -> Float[np.ndarray, "a b"]:
    """Euclidean distances of all pairs of feature vectors."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.clip(square, 0, None))


class FeatureNetwork(nn.Module):
    """Images (B, 1, S, S) in [-1, 1] -> features (B, F), class logits (B, K), targets (B, T) in units of their spread.

    Args:
        size: S, a multiple of 2 to the number of levels.
        channels: of each level; the first convolution of a level halves the image.
        features: F.
        classes: names of the K classes.
        targets: names of the T numbers that are regressed.
    """

    feature_mean: Tensor
    feature_spread: Tensor

    def __init__(
        self, *, size: int, channels: Sequence[int], features: int, classes: Sequence[str], targets: Sequence[str]
    ) -> None:
        super().__init__()
        self.settings = {
            "size": size,
            "channels": list(channels),
            "features": features,
            "classes": list(classes),
            "targets": list(targets),
        }
        self.size, self.classes, self.targets = size, tuple(classes), tuple(targets)
        levels, width = [], 1
        for count in channels:
            levels += [_block(width, count, stride=2), _block(count, count, stride=1)]
            width = count
        self.levels = nn.Sequential(*levels)
        self.to_features = nn.Linear(2 * width, features)
        self.heads = nn.Sequential(nn.SiLU(), nn.Linear(features, len(classes) + len(targets)))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_spread", torch.ones(features))

    def raw(self, x: Tensor) -> Tensor:
        """Features before scaling (B, F), from each channel's mean and spread over the image."""
        maps = self.levels(x).flatten(2).float()
        return self.to_features(torch.cat([maps.mean(-1), maps.std(-1)], dim=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, class logits and targets."""
        raw = self.raw(x)
        outputs = self.heads(raw)
        count = len(self.classes)
        # Saturating: a few huge nodules would else decide every distance, and every interval.
        scaled = 2 * torch.tanh((raw - self.feature_mean) / self.feature_spread / 2)
        return scaled, outputs[:, :count], outputs[:, count:]


def save_feature_network(path: Path, network: FeatureNetwork, facts: Mapping[str, Any]) -> None:
    """Writes a state dict of half precision and its sidecar, with the network's `settings` beside.

    Args:
        path: `NAME.pt`; the sidecar is `NAME.json`.
        network: trained.
        facts: the rest of the sidecar.
    """
    state = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    sidecar = {
        "network": f"{FeatureNetwork.__module__}.{FeatureNetwork.__name__}",
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        **facts,
        "settings": network.settings,
    }
    write_bytes(path, buffer.getvalue())
    write_json(path.with_suffix(".json"), sidecar)


def load_feature_network(path: Path) -> tuple[FeatureNetwork, Mapping[str, Any]]:
    """Reads a network and its sidecar.

    Raises:
        InputError: when a file is missing or damaged, or is of another network.
    """
    weights = read_weights_file(path)
    try:
        network = FeatureNetwork(**weights.sidecar["settings"])
        state = torch.load(weights.path, map_location="cpu", weights_only=True)
        network.load_state_dict({key: v.float() if v.is_floating_point() else v for key, v in state.items()})
    except Exception as error:  # pickle, zip and torch raise what they like on a damaged file
        raise InputError(
            f"{path}: expected a feature network with its sidecar ({str(error).splitlines()[0]}). Copy both from "
            "lungsynth/similarity/weights, or train them with scripts/train_features.py."
        ) from error
    return network.eval(), weights.sidecar


def _batches(hu: HuPlanes) -> list[np.ndarray]:
    return [hu[i : i + _BATCH] for i in range(0, len(hu), _BATCH)]


def _domain(kind: SampleKind) -> Features:
    network, sidecar = load_feature_network(WEIGHTS / f"{_NETWORK_OF.get(kind, kind)}_features.pt")

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        if images.shape[-1] != network.size:
            images = functional.interpolate(images, size=[network.size] * 2, mode="bilinear", antialias=True)
        vectors, logits, _ = network(images)
        return vectors, logits

    return Features(
        name="domain", forward=forward, classes=network.classes, identity=str(sidecar["sha256"]), sidecar=sidecar
    )


def _torchscript(path: Path) -> Features:
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"`features` {path}: expected `domain`, `inception` or a TorchScript file ({str(error).splitlines()[0]})."
        ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Features(name=path.name, forward=lambda images: (network(images), None), identity=digest, sidecar={})


def _inception() -> Features:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
    except Exception as error:  # torchvision's operators, no package, no weights and no network each raise their own
        raise InputError(
            "`features` inception: needs torch-fidelity and its Inception-v3 weights, which lungsynth does not bring "
            f"({type(error).__name__}: {[*str(error).splitlines(), ''][0]}). Install torch-fidelity with a torchvision "
            "that fits this torch, let it load its weights once, or use `domain`."
        ) from error

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        grey = functional.interpolate(images, size=[_INCEPTION_PX] * 2, mode="bilinear", antialias=True)
        bytes_ = ((grey.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        vectors, logits = network(repeat(bytes_, "b 1 h w -> b 3 h w"))
        return vectors, logits

    return Features(name="inception", forward=forward, identity="torch-fidelity", sidecar={})


def _block(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    # Batch norm, not group norm: a sample's own level and contrast are what is to be compared.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )
