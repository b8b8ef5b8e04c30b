# SPDX-License-Identifier: Apache-2.0
"""Samples by seed: what users of this bundle call.

A seed makes one sample of a category and diameter, whatever else is requested in the same call: the latent and, where
no diameter is given, the diameter come from the seed alone, and the network always sees batches of the same size.
Diameters are those of the disc (cubes: the sphere) as large as the mask.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer, SimpleInferer
from scipy import ndimage
from torch import Tensor, nn

from .categories import ANY
from .common.hounsfield import NETWORK_WINDOW
from .diameters import equivalent_diameter
from .fitted import FittedFrame
from .latents import draw_latents, seeded_generator
from .sample_types import sample_type_of

__all__ = ["Sampler"]

_FAINT_ALPHA = 0.05  # where alpha is below this, HU are the lung's: less than 5 % of a nodule does not show in noise
_NO_ALPHA = 0.02  # alpha below this is 0, as in a cohort
_OUTLINE = 0.5  # of a soft mask
_LEAST_COMPONENT = 0.1  # of the largest component of a lung mask; a smaller one is no lung
_LARGEST_SPHERE = 0.75  # of the diameter of the largest sphere in a cube: longer nodules must fit, too
_SMALLEST_SPHERE = 3.0  # voxels of a cube: of a smaller one its soft edge leaves nothing
_LEAST_NODULE_MM = 3.0  # drawn where a network knows no diameter: smaller ones are not called nodules in LIDC-IDRI
_REDRAWS = 24  # at most, of the latent of a cube whose nodule is too long to lie in it at its diameter
_ROUNDING_MM = 1e-3  # allowed above `largest_mm`, for sizes that others have measured and rounded


class Sampler:
    """Calls the generator with seeds, categories and diameters.

    Args:
        network: the generator, with its weights.
        sample_type: a name of `SAMPLE_TYPES`.
        categories: names in the order of the network's indices; empty for an unconditional network.
        spacing_mm: of a pixel.
        edge_px: standard deviation in pixels of the soft edge that a cohort's nodules have on this grid. The outline
            that was generated (0.5) gets the same one; 0 leaves the mask as the network made it.
        network_batch_size: samples a forward pass; part of what makes a sample, so it does not follow the calls.
        device: of the network.
        inferer: calls the network.
        fitted: how cubes are scaled, which they need; None for samples that keep their spacing.

    Attributes:
        categories: names that may be requested.
        spacing_mm: of a pixel.
        largest_mm: the largest diameter that may be requested: that of a mask which fills the frame up to its border,
            where alpha is 0 (no mask that a cohort has on this grid is larger); of cubes, three quarters of that of the
            largest sphere.
        smallest_mm: the smallest, 0 but for cubes.

    Raises:
        ValueError: when sample type, categories or `fitted` do not fit the network.
    """

    def __init__(  # noqa: PLR0913 - filled by keyword from a config
        self,
        network: nn.Module,
        *,
        sample_type: str,
        categories: Sequence[str],
        spacing_mm: float,
        edge_px: float,
        network_batch_size: int = 16,
        device: torch.device | str = "cpu",
        inferer: Inferer | None = None,
        fitted: FittedFrame | None = None,
    ) -> None:
        self.spatial_dims, self.has_diameter, self.mask_key = sample_type_of(sample_type)
        self.categories = tuple(categories) or (ANY,)
        if len(self.categories) != network.n_categories:
            raise ValueError(f"Expected {network.n_categories} categories, as the network has, got {self.categories}.")
        if (self.spatial_dims == 3) != (fitted is not None):
            raise ValueError(f"Cubes are scaled by `fitted`, and nothing else is; got sample_type {sample_type!r}.")
        self.network = network.to(device).eval()
        self.spacing_mm, self.edge_px = spacing_mm, edge_px
        inside = torch.tensor(float(network.size - 2) ** self.spatial_dims, dtype=torch.float64)
        self.largest_mm = (
            float(equivalent_diameter(inside, self.spatial_dims)) * spacing_mm
            if fitted is None
            else _LARGEST_SPHERE * (fitted.cube_size - 2) * fitted.cube_spacing_mm
        )
        self.smallest_mm = 0.0 if fitted is None else _SMALLEST_SPHERE * fitted.cube_spacing_mm
        self.fitted = fitted
        self.network_batch_size = network_batch_size
        self.device = torch.device(device)
        self.inferer = inferer or SimpleInferer()

    def __call__(
        self, seeds: Sequence[int], categories: Sequence[str], diameters_mm: Sequence[float | None]
    ) -> dict[str, Any]:
        """Makes one sample a seed.

        Args:
            seeds: any integers of 64 bits.
            categories: as many names out of `self.categories`.
            diameters_mm: as many diameters in (0, `largest_mm`]; None draws one as in training, at least the smallest
                positive one of the training's percentiles. Lungs and slices have none, whatever is requested.

        Returns:
            `hu` int16 (N, H, W), of cubes (N, D, H, W); `alpha` float16 of the same shape or, for lungs and slices,
            `mask` uint8, of the lungs; `category`, a list; `diameter_mm` float32 (N,), as requested or drawn (0 for
            lungs and slices); `seed` int64 (N,).

        Raises:
            ValueError: when the lists differ in length, a category is unknown or a nodule cannot have a diameter.
        """
        self._check(seeds, categories, diameters_mm)
        index = torch.tensor([self.categories.index(name) for name in categories], dtype=torch.int64)
        generators = [seeded_generator(int(seed)) for seed in seeds]
        latent = torch.cat([draw_latents(g, 1, self.network.latent_dim) for g in generators] or [torch.zeros(0)])
        diameter = self._diameters(generators, index, diameters_mm)
        samples = self._generate(latent, index, diameter) if generators else torch.zeros(0, 2, *[1] * self.spatial_dims)
        if self.fitted is not None:
            hu, mask = self._placed(self.fitted, samples, generators, index, diameter)
        else:
            hu, mask = np.rint(NETWORK_WINDOW.to_hu(samples[:, 0]).numpy()).astype(np.int16), samples[:, 1].numpy()
            mask = _nodule_alphas(mask, self.edge_px) if self.has_diameter else _lung_masks(mask)
            hu = _even_surroundings(hu, mask) if self.has_diameter else hu
        return {
            "hu": hu,
            self.mask_key: mask,
            "category": list(categories),
            "diameter_mm": diameter.numpy(),
            "seed": np.asarray(seeds, dtype=np.int64),
        }

    def _placed(
        self,
        fitted: FittedFrame,
        samples: Tensor,
        generators: Sequence[torch.Generator],
        category: Tensor,
        diameter: Tensor,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cubes (N, n, n, n), HU int16 and alpha float16, of what was generated.

        Each nodule gets the proportions of one of the training. One that a cube cannot hold at its diameter is made
        again, from a further latent of its seed.
        """
        shape = (len(samples), *[fitted.cube_size] * 3)
        hu, alpha = np.empty(shape, np.int16), np.empty(shape, np.float16)
        waiting = dict(enumerate(samples))
        for _ in range(_REDRAWS):
            late = []
            for i, sample in waiting.items():
                image, mask = self._stretched(fitted, sample, generators[i])
                wanted_mm = float(diameter[i])
                if fitted.holds(mask, wanted_mm):
                    hu[i], alpha[i] = fitted.place(image, mask, wanted_mm, edge_px=self.edge_px)
                else:
                    late.append(i)
            if not late:
                return hu, alpha
            latent = torch.cat([draw_latents(generators[i], 1, self.network.latent_dim) for i in late])
            waiting = dict(zip(late, self._generate(latent, category[late], diameter[late]), strict=True))
        raise ValueError(
            f"The network made no nodule of {float(diameter[late[0]]):.1f} mm and category "
            f"{self.categories[int(category[late[0]])]} that a cube of {fitted.cube_size} voxels holds, in {_REDRAWS} "
            "draws. Ask for a smaller one, or train longer."
        )

    def _stretched(
        self, fitted: FittedFrame, sample: Tensor, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """HU and mask of a sample with the proportions of a training nodule, mirrored at random."""
        moments = self.network.shape_moments
        chosen = moments[int(torch.randint(len(moments), (), generator=generator))].double().cpu().numpy()
        signs = np.where(torch.rand(3, generator=generator).numpy() < 0.5, -1.0, 1.0)
        hu, mask = NETWORK_WINDOW.to_hu(sample[0]).numpy(), sample[1].numpy()
        if not (mask >= _OUTLINE).any():
            return hu, mask
        return fitted.stretched(hu, mask, chosen * np.outer(signs, signs))

    def _check(self, seeds: Sequence[int], categories: Sequence[str], diameters_mm: Sequence[float | None]) -> None:
        if not len(seeds) == len(categories) == len(diameters_mm):
            raise ValueError(
                f"Expected as many categories and diameters as seeds ({len(seeds)}), got {len(categories)} and "
                f"{len(diameters_mm)}."
            )
        unknown = sorted(set(categories) - set(self.categories))
        if unknown:
            raise ValueError(f"Expected categories out of {list(self.categories)}, got {unknown}.")
        requested = [mm for mm in diameters_mm if mm is not None] if self.has_diameter else []
        low_mm, high_mm = self.smallest_mm - _ROUNDING_MM, self.largest_mm + _ROUNDING_MM
        if wrong := [mm for mm in requested if not (math.isfinite(mm) and mm > 0 and low_mm <= mm <= high_mm)]:
            got = f"{', '.join(f'{mm:g}' for mm in wrong[:5])}{' and more' if len(wrong) > 5 else ''}"
            raise ValueError(
                f"Expected diameters_mm above {self.smallest_mm:.2g} and up to {self.largest_mm:.1f} mm, which "
                f"{self._frame_words()}, got {got}. Ask for one in between, or None: as in training."
            )

    def _frame_words(self) -> str:
        if self.fitted is None:
            return f"fill the frame of {self.network.size} pixels of {self.spacing_mm:g} mm"
        return f"a cube of {self.fitted.cube_size} voxels of {self.spacing_mm:g} mm holds, whatever the shape"

    def _diameters(
        self, generators: Sequence[torch.Generator], category: Tensor, requested_mm: Sequence[float | None]
    ) -> Tensor:
        """What was requested, or a draw from the network's quantiles; float32 (N,)."""
        diameters = []
        for generator, index, requested in zip(generators, category.tolist(), requested_mm, strict=True):
            place = float(torch.rand((), generator=generator)) * 100  # drawn in any case: what follows must not depend
            quantiles = _positive(self.network.diameter_quantiles[index].cpu()).clamp(max=self.largest_mm)
            low = min(int(place), 99)
            drawn = float(torch.lerp(quantiles[low], quantiles[low + 1], place - low))
            diameters.append(0.0 if not self.has_diameter else drawn if requested is None else float(requested))
        return torch.tensor(diameters, dtype=torch.float32)

    def _generate(self, latent: Tensor, category: Tensor, diameter: Tensor) -> Tensor:
        """Runs the network in blocks of `network_batch_size`, the last one filled up; (N, 2, ...) on the CPU."""
        blocks = []
        for start in range(0, len(latent), self.network_batch_size):
            inputs = [values[start : start + self.network_batch_size] for values in (latent, category, diameter)]
            count = len(inputs[0])
            fill = [torch.cat([v, v[:1].expand(self.network_batch_size - count, *v.shape[1:])]) for v in inputs]
            with torch.inference_mode():
                samples = self.inferer(fill[0].to(self.device), self.network, *(v.to(self.device) for v in fill[1:]))
            blocks.append(samples[:count].cpu())
        return torch.cat(blocks)


def _positive(quantiles: Tensor) -> Tensor:
    """Percentiles (101,) in mm, none below the smallest positive one: a mask without a pixel is no nodule's."""
    positive = quantiles[quantiles > 0]
    return quantiles.clamp(min=float(positive.min()) if len(positive) else _LEAST_NODULE_MM)


def _nodule_alphas(alpha: np.ndarray, edge_px: float) -> np.ndarray:
    """Alphas (N, [D, ]H, W) as float16, one connected nodule each: nothing faint, apart or on the border."""
    single = [_with_edge(one, edge_px) if edge_px else _without_faint(one) for one in alpha]
    cleaned = np.reshape(single, alpha.shape).astype(np.float16)
    for axis in range(1, cleaned.ndim):
        np.moveaxis(cleaned, axis, 0)[[0, -1]] = 0
    return cleaned


def _with_edge(alpha: np.ndarray, edge_px: float) -> np.ndarray:
    """The outline's largest component with the soft edge of a cohort's masks."""
    inside = alpha >= 0.5
    if not inside.any():
        return _without_faint(alpha)
    soft = ndimage.gaussian_filter(_components(inside, alpha, largest=1).astype(np.float32), edge_px)
    return np.where(soft < _NO_ALPHA, 0, soft)


def _without_faint(alpha: np.ndarray) -> np.ndarray:
    cleaned = np.where(alpha < _FAINT_ALPHA, 0, alpha)
    return cleaned * _components(cleaned > 0, cleaned, largest=1)


def _even_surroundings(hu: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """HU (N, [D, ]H, W) with one level, the median, around the nodule, as in the patches of a cohort."""
    level = [np.median(one[outside]) if outside.any() else 0 for one, outside in zip(hu, alpha == 0, strict=True)]
    levels = np.rint(level).astype(np.int16).reshape(-1, *[1] * (hu.ndim - 1))
    return np.where(alpha < _FAINT_ALPHA, levels, hu)


def _lung_masks(mask: np.ndarray) -> np.ndarray:
    """Lung masks (N, H, W) as uint8: the two largest components above 0.5, unless one is small."""
    inside = mask >= 0.5
    return np.reshape([_components(one, one.astype(np.float32), largest=2) for one in inside], mask.shape).astype(
        np.uint8
    )


def _components(inside: np.ndarray, weight: np.ndarray, *, largest: int) -> np.ndarray:
    """The `largest` heaviest components of a mask ([D, ]H, W), those below `_LEAST_COMPONENT` of the first left out."""
    labels, count = ndimage.label(inside)
    if count < 2:
        return inside
    mass = ndimage.sum_labels(weight, labels, np.arange(1, count + 1))
    order = np.argsort(-mass, kind="stable")[:largest]
    return np.isin(labels, 1 + order[mass[order] >= _LEAST_COMPONENT * mass[order[0]]])
