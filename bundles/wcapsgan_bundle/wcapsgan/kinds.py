# SPDX-License-Identifier: Apache-2.0
"""The kinds of samples, by the name that the configs give as `layer`, and the one measure of size that they share."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LAYERS", "Layer", "equal_diameter", "layer_of"]

_UNIT_BALL = {2: torch.pi, 3: 4 / 3 * torch.pi}  # area of the disc, volume of the ball, of radius 1


class Layer(NamedTuple):
    """What is known of a layer.

    Attributes:
        axes: of space, 2 or 3.
        sized: whether samples are asked for by their diameter.
        mask: name of the mask in the npz files.
    """

    axes: int
    sized: bool
    mask: str


LAYERS = {
    "nodule": Layer(axes=2, sized=True, mask="alpha"),
    "cube": Layer(axes=3, sized=True, mask="alpha"),
    "lung": Layer(axes=2, sized=False, mask="mask"),
    "slice": Layer(axes=2, sized=False, mask="mask"),
}


def layer_of(name: str) -> Layer:
    """The layer of that name.

    Raises:
        ValueError: when there is none.
    """
    if name not in LAYERS:
        raise ValueError(f"layer must be one of {list(LAYERS)}, got {name!r}.")
    return LAYERS[name]


def equal_diameter(measure: Tensor, axes: int, *, least: float = 0.0) -> Tensor:
    """Diameter of the disc (2 axes) or ball (3 axes) of that area or volume, in the pixels that it was counted in.

    Args:
        measure: areas or volumes, any shape.
        axes: 2 or 3.
        least: added to the square (cube) of the radius, for a gradient at 0.
    """
    power = measure / _UNIT_BALL[axes] + least
    return 2 * (power.sqrt() if axes == 2 else power.pow(1 / 3))
