"""Feature networks: images become vectors, whose distributions are compared.

`domain` is this package's own (scripts/train_features.py), `inception` Inception-v3 with torch-fidelity's weights,
where the user has both, and a path is any TorchScript file that maps (B, 1, S, S) in [-1, 1] to (B, F).
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lungsynth.errors import InputError
from lungsynth.hounsfield import NETWORK_WINDOW
from lungsynth.likeness.feature_network import load_feature_network
from lungsynth.likeness.samples import Kind
from lungsynth.types import HuPlanes

__all__ = ["WEIGHTS", "FeatureSet", "Features", "open_features", "pairwise_distance", "unit_images"]

WEIGHTS = Path(__file__).resolve().parent / "weights"
_BATCH = 64
_INCEPTION_PX = 299
_LOOKED_AT_BY: Mapping[Kind, Kind] = {"slices": "lungs"}  # by a network that learnt on others

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
                f"--features {self.name}: fails on images {hu.shape} ({str(error).splitlines()[-1]}). It must map "
                "(B, 1, S, S) in [-1, 1] to (B, F)."
            ) from error
        if vectors.shape[:1] != hu.shape[:1] or vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise InputError(f"--features {self.name}: expected finite (N, F) for {hu.shape}, got {vectors.shape}.")
        logits = [logits for _, logits in parts if logits is not None]
        probabilities = torch.softmax(torch.cat(logits).double(), dim=1).numpy() if logits else None
        return FeatureSet(vectors=vectors.astype(np.float64), probabilities=probabilities)


def open_features(name: str, kind: Kind) -> Features:
    """Opens a feature network.

    Args:
        name: `domain`, `inception`, or a TorchScript file.
        kind: what it will look at; the domain's network is another for each.

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


def pairwise_distance(a: Float[np.ndarray, "a features"], b: Float[np.ndarray, "b features"]) -> Float[np.ndarray, "a b"]:
    """Euclidean distances of all pairs of feature vectors."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.clip(square, 0, None))


def _batches(hu: HuPlanes) -> list[np.ndarray]:
    return [hu[i : i + _BATCH] for i in range(0, len(hu), _BATCH)]


def _domain(kind: Kind) -> Features:
    network, sidecar = load_feature_network(WEIGHTS / f"{_LOOKED_AT_BY.get(kind, kind)}_features.pt")

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
            f"--features {path}: expected `domain`, `inception` or a TorchScript file ({str(error).splitlines()[0]})."
        ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Features(name=path.name, forward=lambda images: (network(images), None), identity=digest, sidecar={})


def _inception() -> Features:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
    except Exception as error:  # torchvision's operators, no package, no weights and no network each raise their own
        raise InputError(
            "--features inception: needs torch-fidelity and its Inception-v3 weights, which lungsynth does not bring "
            f"({type(error).__name__}: {[*str(error).splitlines(), ''][0]}). Install torch-fidelity with a torchvision "
            "that fits this torch, let it load its weights once, or use --features domain."
        ) from error

    def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
        grey = functional.interpolate(images, size=[_INCEPTION_PX] * 2, mode="bilinear", antialias=True)
        bytes_ = ((grey.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        vectors, logits = network(repeat(bytes_, "b 1 h w -> b 3 h w"))
        return vectors, logits

    return Features(name="inception", forward=forward, identity="torch-fidelity", sidecar={})
