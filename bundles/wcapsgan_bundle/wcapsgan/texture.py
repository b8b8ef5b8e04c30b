# SPDX-License-Identifier: Apache-2.0
"""Noise and sharpness of an image as a style: what a scanner, its kernel and its dose leave in every pixel.

A critic that compares a sharp patch with a smooth generated one learns the kernel before it learns a vessel. So the
generator is told both numbers of the real patch that it stands beside, scaled to a standard normal, and is asked to
have them. When it samples, it draws them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["TextureStyle", "texture"]

_AIR, _BONE = -0.97, 0.9  # on the networks' scale; beyond, the window cuts the noise
_BLACK, _LUNG = -0.985, -0.6  # a pixel and its surroundings, from where to where the numbers are taken
_SURROUNDINGS = 9  # pixels
_ELSEWHERE = 1e-3  # weight of what is no lung: it counts only where there is none
_LEAST = 1e-3  # added before the logarithm, 0.7 HU
_FINE_PX, _WIDE_PX = 0.7, 1.4  # standard deviations of the Gaussians whose difference shows sharpness
_REACH = 3


def texture(image: Tensor) -> Tensor:
    """Logarithms of the noise and of the fine structure in the lung of images (B, 1, H, W), shape (B, 2).

    Noise is the mean response to the operator of Immerkaer (1996), which edges hardly reach; fine structure that to a
    difference of Gaussians.
    """
    inside = ((image > _AIR) & (image < _BONE)).float()
    around = functional.avg_pool2d(image, _SURROUNDINGS, 1, _SURROUNDINGS // 2)
    weight = ((image > _BLACK) & (around < _LUNG)).float() + _ELSEWHERE * inside + 1e-6
    levels = []
    for kernel in (_laplacians(image), _difference(image)):
        response = functional.conv2d(image, kernel, padding=kernel.shape[-1] // 2).abs()
        levels.append(torch.log((response * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)) + _LEAST))
    return torch.stack(levels, dim=1)


class TextureStyle(nn.Module):
    """Styles (B, style_dim): the texture of images, scaled to a standard normal, and standard normal numbers.

    Args:
        real: real images (N, 1, H, W), from which the scale is taken; at least 3.
        style_dim: at least 2.
    """

    def __init__(self, real: Tensor, *, style_dim: int) -> None:
        super().__init__()
        measured = texture(real)
        self.free = style_dim - measured.shape[1]
        self.register_buffer("mean", measured.mean(dim=0))
        self.register_buffer("whitening", torch.linalg.inv(torch.linalg.cholesky(torch.cov(measured.T))))

    def forward(self, images: Tensor, free: Tensor) -> Tensor:
        """Styles of images (B, 1, H, W) with the free numbers (B, style_dim - 2)."""
        return torch.cat([(texture(images) - self.mean) @ self.whitening.T, free], dim=1)


def _laplacians(like: Tensor) -> Tensor:
    """The difference of two Laplacians, (1, 1, 3, 3); of white noise it keeps the standard deviation."""
    return like.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])[None, None] / 6


def _difference(like: Tensor) -> Tensor:
    places = torch.arange(-_REACH, _REACH + 1, dtype=like.dtype, device=like.device)
    fine, wide = (_gaussian(places, sigma) for sigma in (_FINE_PX, _WIDE_PX))
    return (fine - wide)[None, None]


def _gaussian(places: Tensor, sigma: float) -> Tensor:
    weights = torch.exp(-places.square() / (2 * sigma**2))
    return torch.outer(weights, weights) / weights.sum().square()
