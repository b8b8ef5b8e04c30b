"""Copies: how near each generated sample is to its nearest training sample, flipped and moved as it may be.

The distance is relative: the root mean square difference of HU in the sample's neighbourhood (its mask and 3 mm
around), the mean difference taken out, divided by the sample's own contrast there. 0 is the same image, about 1 an
unrelated one, and a brighter copy is as much a copy.

What counts as a copy is measured on patients: held-out nodules cannot be copies, so that the distances which they keep
say how near two nodules may be by chance. The chance falls with size, since small nodules resemble one another: the
threshold follows the diameter.

Images are first laid with the centre of their masks on one another. All pairs are compared at 16 pixels a side, by
matrix products, then the eight nearest of each sample at 64 pixels, moved by up to 3 pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from lungsynth.errors import InputError
from lungsynth.hounsfield import LUNG_HU
from lungsynth.similarity.samples import Samples

__all__ = ["Copies", "CopyThreshold", "coarse_distances", "copy_threshold", "find_copies"]

# Another value of any constant but `_CHUNK` gives other distances, and the threshold is measured anew with them.
_FINE_PX, _COARSE_PX = 64, 16  # widths at which samples are compared: all pairs coarsely, the nearest finely
_MAX_MOVE_PX = 3  # at the fine width: how far a copy may be shifted after centring
_NEAREST = 8  # of each sample, compared finely; a copy is the coarsely nearest, or nearly so
_RIM_MM = 3.0  # around the mask: the neighbourhood that is compared
_MIN_CONTRAST_HU = 30.0  # below, noise would be compared with noise
_MIN_DIAMETER_MM = 1.0  # smaller ones count as this, so that logarithms stay finite
_CHUNK = 256  # samples at a time: memory alone
_PERCENTILE = 1.0  # of held-out samples count as copies, by construction: the false alarms


@dataclass(frozen=True, eq=False, kw_only=True)
class Copies:
    """The nearest training sample of each generated one.

    Args:
        distances: relative, 0 for the same image.
        indices: place of the nearest training sample.
    """

    distances: Float[np.ndarray, " n"]
    indices: Int[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class CopyThreshold:
    """How near a sample of a diameter may come by chance: log distance = intercept + slope * log diameter.

    Args:
        intercept: at 1 mm, such that 1 % of the held-out samples lie below.
        slope: change of the log distance when the diameter grows by a factor e.
    """

    intercept: float
    slope: float

    def at(self, diameter_mm: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The distance below which a sample counts as a copy."""
        return np.asarray(np.exp(self.intercept + self.slope * np.log(np.maximum(diameter_mm, _MIN_DIAMETER_MM))))

    def copied(self, copies: Copies, samples: Samples) -> Bool[np.ndarray, " n"]:
        """Which samples count as copies."""
        return copies.distances < self.at(samples.diameter_mm)


class _Planes(NamedTuple):
    """HU and neighbourhood (N, S, S), centred."""

    hu: Tensor
    near: Tensor


def find_copies(generated: Samples, training: Samples, *, flips: bool = True) -> Copies:
    """Finds the nearest training sample of each generated one.

    Args:
        generated: what is looked at.
        training: what the generator was trained on, all slices of it; on the same grid.
        flips: whether a mirror image is a copy; not for lungs.

    Raises:
        InputError: when there is no training sample, or the grids differ.
    """
    if not len(training) or generated.hu.shape[1:] != training.hu.shape[1:]:
        raise InputError(
            f"Copies are looked for among training samples on the same grid, got {generated.hu.shape} and "
            f"{training.hu.shape}."
        )
    trained_on, distances, indices = _centred(training), [np.zeros(0)], [np.zeros(0, np.int64)]
    for part in _chunks(len(generated)):
        own = _centred(generated.take(part))
        nearest = _coarse(own, trained_on, flips=flips)
        fine = torch.stack(
            [_fine(own.hu[i], own.near[i], trained_on.hu[nearest[i]], flips=flips) for i in range(len(part))]
        )
        best = fine.argmin(dim=1)
        distances.append(fine.gather(1, best[:, None])[:, 0].double().numpy())
        indices.append(nearest.gather(1, best[:, None])[:, 0].numpy())
    return Copies(distances=np.concatenate(distances), indices=np.concatenate(indices))


def coarse_distances(generated: Samples, real: Samples, *, flips: bool = True) -> Float[np.ndarray, "generated real"]:
    """Relative distances of all pairs as they are at 16 pixels a side, not moved: for shares, not for copies.

    Args:
        generated: samples.
        real: others on the same grid.
        flips: whether a mirror image is the same sample.
    """
    others, distances = _centred(real), [np.zeros((0, len(real)))]
    for part in _chunks(len(generated)):
        own = _centred(generated.take(part))
        g, m = (_pooled(planes).flatten(1) for planes in own)
        area = m.sum(1, keepdim=True)
        contrast = ((m * (g - (m * g).sum(1, keepdim=True) / area) ** 2).sum(1, keepdim=True) / area).sqrt()
        roots = _all_pairs(own, others, flips=flips).clamp(min=0).sqrt()
        distances.append((roots / contrast.clamp(min=_MIN_CONTRAST_HU)).double().numpy())
    return np.concatenate(distances)


def copy_threshold(copies: Copies, held_out: Samples) -> CopyThreshold:
    """The threshold that 1 % of held-out samples lie below: a rate that copies have to exceed to be noticed.

    Args:
        copies: of held-out samples among the training samples.
        held_out: those samples.

    Raises:
        InputError: without samples.
    """
    if not len(held_out):
        raise InputError("A threshold of copies needs held-out samples.")
    x = np.log(np.maximum(held_out.diameter_mm, _MIN_DIAMETER_MM))
    y = np.log(np.maximum(copies.distances, 1e-6))
    slope = float(np.polyfit(x, y, 1)[0]) if len(x) > 2 and np.ptp(x) > 1e-3 else 0.0
    return CopyThreshold(intercept=float(np.percentile(y - slope * x, _PERCENTILE)), slope=slope)


def _centred(samples: Samples) -> _Planes:
    """At most 64 pixels, the middle of each mask in the middle of the image, the border repeated."""
    factor = max(samples.hu.shape[-1] // _FINE_PX, 1)
    hu, mask = (
        functional.avg_pool2d(torch.from_numpy(planes.astype(np.float32))[:, None], factor)[:, 0]
        for planes in (samples.hu, samples.mask)
    )
    rim_px = max(round(_RIM_MM / (samples.spacing_mm * factor)), 1)
    near = functional.max_pool2d((mask >= 0.5).float()[:, None], 2 * rim_px + 1, stride=1, padding=rim_px)[:, 0]
    size = hu.shape[-1]
    axis = torch.arange(size)
    centred = []
    for plane, region in zip(hu, near, strict=True):
        inside = region.nonzero().float()
        middle = inside.mean(0) if len(inside) else torch.full((2,), (size - 1) / 2)
        rows, columns = ((axis + int(shift)).clamp(0, size - 1) for shift in (middle - (size - 1) / 2).round())
        centred.append(torch.stack([plane, region])[:, rows][:, :, columns])
    planes, regions = torch.stack(centred).unbind(1)
    planes = planes - float(LUNG_HU)  # so that squares keep their digits in float32
    regions[regions.sum(dim=(1, 2)) == 0] = 1.0  # an empty mask: the whole image
    return _Planes(planes, regions)


def _coarse(own: _Planes, trained_on: _Planes, *, flips: bool) -> Tensor:
    """Places (N, 8) of the nearest at 16 pixels a side, in the best of the mirror images."""
    squares = _all_pairs(own, trained_on, flips=flips)
    return squares.topk(min(_NEAREST, squares.shape[1]), dim=1, largest=False).indices


def _all_pairs(own: _Planes, others: _Planes, *, flips: bool) -> Tensor:
    """Mean square differences (N, M) at 16 pixels a side, in the best of the mirror images."""
    g, m = (_pooled(planes) for planes in own)
    x = _pooled(others.hu)
    best = torch.full((len(g), len(x)), torch.inf)
    for axes in _mirrors(flips):
        turned = x.flip(axes) if axes else x
        best = torch.minimum(best, _difference(g.flatten(1), m.flatten(1), turned.flatten(1)))
    return best


def _difference(g: Tensor, m: Tensor, x: Tensor) -> Tensor:
    """Mean square difference within m, its mean taken out, of all pairs (N, M)."""
    area = m.sum(1, keepdim=True)
    mean = (m * g).sum(1, keepdim=True) / area - m @ x.T / area
    square = (m * g**2).sum(1, keepdim=True) - 2 * (m * g) @ x.T + m @ (x**2).T
    return square / area - mean**2


def _fine(g: Tensor, m: Tensor, x: Tensor, *, flips: bool) -> Tensor:
    """Relative distances (K,) of one sample (S, S) to K others, the best over mirror images and moves."""
    views = torch.stack([x.flip(axes) if axes else x for axes in _mirrors(flips)])
    padded = functional.pad(views.flatten(0, 1)[:, None], [_MAX_MOVE_PX] * 4, mode="replicate")
    area = m.sum()
    over = functional.conv2d(padded, torch.stack([m * g, m])[:, None])
    squares = functional.conv2d(padded**2, m[None, None])[:, 0]
    mean = ((m * g).sum() - over[:, 1]) / area
    square = ((m * g**2).sum() - 2 * over[:, 0] + squares) / area - mean**2
    nearest = square.flatten(1).amin(1).reshape(len(views), len(x)).amin(0).clamp(min=0).sqrt()
    centre = (m * g).sum() / area
    contrast = ((m * (g - centre) ** 2).sum() / area).sqrt()
    return nearest / contrast.clamp(min=_MIN_CONTRAST_HU)


def _pooled(planes: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(planes[:, None], _COARSE_PX)[:, 0]


def _mirrors(flips: bool) -> tuple[tuple[int, ...], ...]:
    return ((), (-1,), (-2,), (-1, -2)) if flips else ((),)


def _chunks(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, count))
