"""How similar the samples of a set are to each other: mean MS-SSIM of pairs within a category (Odena et al., 2017).

1 means that all are the same. Read it beside that of real samples: a set whose samples differ more than real ones is
noise, not diversity. Three scales at 64 pixels and a window of 7, because the customary five need 160 pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from lungsynth.similarity.features import unit_images
from lungsynth.similarity.samples import Samples

__all__ = ["PairSimilarity", "ms_ssim", "pair_similarity"]

_BETAS = (0.0448, 0.2856, 0.3001)  # Wang et al. (2003), the three finest scales, normalised to a sum of 1
_WINDOW = 7  # pixels; the coarsest scale of a 64 pixel image has 16
_MAX_PX = 128  # larger images are averaged down first: faster, and blind to the finest noise
_BATCH = 64  # pairs at a time; memory only
_OVERDRAW = 8  # pairs drawn for each wanted one; those of two categories or of one owner are dropped


@dataclass(frozen=True, eq=False, kw_only=True)
class PairSimilarity:
    """MS-SSIM of drawn pairs.

    Args:
        first: position of one sample of each pair.
        second: of the other.
        values: MS-SSIM.
    """

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    values: Float[np.ndarray, " pairs"]

    def mean(self, counts: Float[np.ndarray, " n"]) -> float:
        """Over pairs, each as often as its two samples were drawn; NaN without a pair."""
        weights = counts[self.first] * counts[self.second]
        return float(weights @ self.values / weights.sum()) if weights.sum() else float("nan")


def pair_similarity(samples: Samples, *, pairs: int, seed: int) -> PairSimilarity:
    """Draws pairs of one category and of different owners, and compares them.

    Args:
        samples: of one set.
        pairs: the largest number of pairs.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    first, second = rng.integers(len(samples), size=(2, _OVERDRAW * pairs))
    categories, owners = (np.unique(names, return_inverse=True)[1] for names in (samples.categories, samples.owners))
    usable = (categories[first] == categories[second]) & (owners[first] != owners[second])
    first, second = first[usable][:pairs], second[usable][:pairs]
    images = unit_images(samples.hu)
    if images.shape[-1] > _MAX_PX:
        images = functional.avg_pool2d(images, images.shape[-1] // _MAX_PX)
    values = [ms_ssim(images[i], images[j]) for i, j in zip(_batches(first), _batches(second), strict=True)]
    return PairSimilarity(
        first=first, second=second, values=np.concatenate(values) if values else np.zeros(0, np.float64)
    )


def ms_ssim(a: Tensor, b: Tensor) -> Float[np.ndarray, " pairs"]:
    """MS-SSIM of images (B, 1, S, S) in [-1, 1] with one another, S at least 32."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    betas = tuple(beta / sum(_BETAS) for beta in _BETAS)
    values = multiscale_structural_similarity_index_measure(
        a, b, gaussian_kernel=False, kernel_size=_WINDOW, data_range=2.0, betas=betas, reduction="none"
    )
    return torch.as_tensor(values).double().reshape(-1).numpy()


def _batches(indices: np.ndarray) -> Sequence[np.ndarray]:
    return [indices[i : i + _BATCH] for i in range(0, len(indices), _BATCH)]
