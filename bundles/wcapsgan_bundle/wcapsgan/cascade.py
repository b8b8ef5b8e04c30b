# SPDX-License-Identifier: Apache-2.0
"""Lungs of 512 x 512 pixels in two stages: a layout by the W-CapsuleGAN, then local detail on it.

Called as a `network.Generator` is, so that samplers and validations need not know which one they have. A sample follows
from its latent alone: the first numbers make the layout, the last ones are the style of the detail, and the noise of
the detail comes from a generator seeded with all of them.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .common.weights import load_state, read_state
from .detail import DetailGenerator, NoiseShape, enlarged
from .latents import seeded_generator
from .network import Generator

__all__ = ["Cascade", "load_layout", "lungs_in", "noise_of", "quiet_air"]

_MARGIN = (
    2  # coarse pixels around the layout, its border repeated: where a network's zeros begin leaves no trace inside
)
_SURE = 0.9  # of a coarse mask: from here on lung whatever the image shows, below 1 - _SURE none
_DARK = -0.286  # -500 HU: what is darker beside the outline is lung
_AIR = -0.94  # -958 HU: coarse pixels outside the lungs without a brighter neighbour are air around the body
_CLOSING_PX = 9  # vessels and noise at the outline belong to the lung


class Cascade(nn.Module):
    """Makes images with lung masks from latents.

    Args:
        layout: makes lungs of any size down to `coarse_size`; larger ones are averaged.
        detail: restores `coarse_size` pixels to `coarse_size * detail.factor`.
        coarse_size: pixels of the layout's side.
        size: pixels of a sample's side: those of the detail, or half or a quarter of them, averaged.

    Raises:
        ValueError: when a size is no multiple of the other.
    """

    def __init__(self, *, layout: Generator, detail: DetailGenerator, coarse_size: int, size: int) -> None:
        super().__init__()
        full = coarse_size * detail.factor
        if full % size or layout.size % coarse_size:
            raise ValueError(
                f"size must divide the detail's {full} pixels, and coarse_size the layout's {layout.size}; got size "
                f"{size} and coarse_size {coarse_size}."
            )
        self.layout, self.detail = layout, detail
        self.coarse_size, self.size = coarse_size, size
        self.spatial_dims, self.n_categories = layout.spatial_dims, layout.n_categories
        self.latent_dim = layout.latent_dim + detail.style_dim

    @property
    def diameter_quantiles(self) -> Tensor:
        """Of the layout: lungs have no diameters."""
        return self.layout.diameter_quantiles

    def forward(self, latent: Tensor, category: Tensor | None = None, diameter_mm: Tensor | None = None) -> Tensor:
        """Generates samples; arguments and result as those of `network.Generator`, the mask in {0, 1} at full size."""
        coarse = self.layout(latent[:, : self.layout.latent_dim], category, diameter_mm)
        coarse = functional.avg_pool2d(coarse, coarse.shape[-1] // self.coarse_size)
        seen = functional.pad(coarse[:, :1], [_MARGIN] * 4, mode="replicate")
        shapes = self.detail.noise_shapes(seen.shape[-2], seen.shape[-1], margin=_MARGIN)
        noise = [field.to(seen) for field in noise_of(latent, shapes)]
        image = self.detail(seen, latent[:, self.layout.latent_dim :], noise, _MARGIN)
        image = quiet_air(image, coarse)
        mask = lungs_in(image, enlarged(coarse[:, 1:], self.detail.factor))
        return functional.avg_pool2d(torch.cat([image, mask], dim=1), image.shape[-1] // self.size)


def noise_of(latent: Tensor, shapes: list[NoiseShape]) -> list[Tensor]:
    """Standard normal noise, (B, *shape) for each shape; a sample's own follows from its latent, bit by bit."""
    bits = latent.detach().float().cpu().contiguous().view(torch.int32).tolist()
    draws = [seeded_generator(*row) for row in bits]
    return [torch.stack([torch.randn(shape, generator=draw) for draw in draws]) for shape in shapes]


def quiet_air(image: Tensor, coarse: Tensor) -> Tensor:
    """An image (B, 1, H, W) without detail in the air around the body, of which patches of bodies teach nothing.

    Args:
        image: restored from `coarse`.
        coarse: image and lung mask, (B, 2, h, w).
    """
    brightest = functional.max_pool2d(coarse[:, :1], 3, 1, 1)
    air = ((brightest < _AIR) & (coarse[:, 1:] < 1 - _SURE)).to(image.dtype)
    factor = image.shape[-1] // coarse.shape[-1]
    return torch.lerp(image, enlarged(coarse[:, :1], factor), enlarged(air, factor))


def lungs_in(image: Tensor, coarse_mask: Tensor) -> Tensor:
    """Lung masks (B, 1, H, W), 0 or 1, whose outline follows the image.

    Args:
        image: (B, 1, H, W) in [-1, 1].
        coarse_mask: a soft mask, enlarged to that size; it decides where it is sure.
    """
    smooth = functional.avg_pool2d(image, 3, 1, 1)
    mask = ((coarse_mask >= _SURE) | ((coarse_mask > 1 - _SURE) & (smooth < _DARK))).to(image.dtype)
    grown = functional.max_pool2d(mask, _CLOSING_PX, 1, _CLOSING_PX // 2)
    closed = -functional.max_pool2d(-grown, _CLOSING_PX, 1, _CLOSING_PX // 2)
    return closed * (coarse_mask > 1 - _SURE)


def load_layout(network: Cascade, weights: str | Path) -> Cascade:
    """Gives a cascade its layout: the weights of a generator, or of another cascade, of which it takes the layout.

    Raises:
        FileNotFoundError: when there are no weights.
        WeightsMismatch: when they belong to another network.
    """
    state = read_state(weights)
    prefix = "layout."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)} or state
    load_state(
        network.layout, own, source=weights, hint="Set layout_def as in their training (model.json beside them)."
    )
    return network
