# SPDX-License-Identifier: Apache-2.0
"""What follows a convolution of the generator, in one pass over memory: noise, pixel norm, modulation, activation.

    h = x + strength * noise          n = h / sqrt(mean over channels of h^2 + eps)
    y = leaky(shift + n * (1 + scale))

As separate operations each of these reads and writes all features, in float32 where autocast asks for it, and keeps
what the backward pass needs: on a CPU that takes twice as long as the convolution itself. Here a few samples at a time
go through all of them while they are in the cache, in float32, and only `x` and `y` are kept (measured: 3 times faster
at 64 x 64 pixels and 32 channels). On other devices, and in TorchScript, `StyledBlock` uses the separate operations.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

__all__ = ["modulate"]

_EPSILON = 1e-8  # of the pixel norm, as in Karras et al. (2018)
_CACHED_FEATURES = 1 << 18  # in work at a time: 1 MiB in float32, to stay in a core's cache; for speed alone


def modulate(
    x: Tensor,
    noise: Tensor,
    strength: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    slope: float,
    chunk_size: int = _CACHED_FEATURES,
) -> Tensor:
    """Adds noise, normalises each pixel, modulates and activates.

    Args:
        x: features (B, C, H, W[, D]).
        noise: (B, 1, H, W[, D]); gets no gradient.
        strength: of the noise, a channel each, (C, 1, 1[, 1]).
        scale: of the modulation less one, (B, C, 1, 1[, 1]).
        shift: of the modulation, as `scale`.
        slope: of the activation for negative values.
        chunk_size: features that are worked on at a time, at least those of one sample.

    Returns:
        Features as `x`, of its type, with the channels last in memory.
    """
    return _Modulate.apply(x, noise, strength, scale, shift, slope, chunk_size)


class _Modulate(Function):
    """`modulate` and its gradient. Rows are pixels: (B, P, C)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        noise: Tensor,
        strength: Tensor,
        scale: Tensor,
        shift: Tensor,
        slope: float,
        chunk_size: int,
    ) -> Tensor:
        rows, fields = _rows(x), noise.float().flatten(1).unsqueeze(-1)
        strengths, gain, shifts = strength.float().flatten(), 1 + scale.float().flatten(1), shift.float().flatten(1)
        out = torch.empty_like(rows)
        for part in _chunks(rows, chunk_size):
            h, inverse = _normalised(rows[part], fields[part], strengths)
            y = torch.addcmul(shifts[part, None], h.mul_(inverse), gain[part, None])
            out[part] = functional.leaky_relu_(y, slope)
        ctx.save_for_backward(rows, fields, strengths, gain, out)
        ctx.slope, ctx.chunk_size = slope, chunk_size
        ctx.shapes = [tensor.shape for tensor in (x, strength, scale, shift)]
        return _images(out, x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, fields, strengths, gain, out = ctx.saved_tensors
        of_y, of_x = _rows(gradient), torch.empty_like(rows)
        of_scale, of_shift, of_strength = torch.empty_like(gain), torch.empty_like(gain), torch.zeros_like(strengths)
        for part in _chunks(rows, ctx.chunk_size):
            n, inverse = _normalised(rows[part], fields[part], strengths)
            n.mul_(inverse)
            g = torch.ops.aten.leaky_relu_backward(of_y[part].float(), out[part].float(), ctx.slope, True)
            of_shift[part] = g.sum(dim=1)
            product = g * n
            of_scale[part] = product.sum(dim=1)
            along = torch.bmm(product, gain[part].unsqueeze(-1)).div_(n.shape[-1])  # of the gradient, along n
            g.mul_(gain[part, None]).addcmul_(n, along, value=-1).mul_(inverse)
            of_strength += torch.einsum("bpo,bpc->c", fields[part], g)
            of_x[part] = g
        of_parameters = zip((of_strength, of_scale, of_shift), ctx.shapes[1:], strict=True)
        return _images(of_x, ctx.shapes[0]), None, *(t.reshape(shape) for t, shape in of_parameters), None, None


def _normalised(rows: Tensor, fields: Tensor, strengths: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy features (b, P, C) in float32, to be written into, and the factor (b, P, 1) that normalises them."""
    h = torch.addcmul(rows.float(), fields, strengths)
    mean = torch.matmul(h.square(), h.new_full((h.shape[-1], 1), 1 / h.shape[-1]))
    return h, mean.add_(_EPSILON).rsqrt_()


def _chunks(rows: Tensor, size: int) -> list[slice]:
    """Slices of samples that have up to `size` features together."""
    count = max(1, size // rows[0].numel())
    return [slice(start, start + count) for start in range(0, len(rows), count)]


def _rows(x: Tensor) -> Tensor:
    """(B, C, ...) as (B, P, C), without a copy where the channels are last in memory."""
    return x.movedim(1, -1).reshape(x.shape[0], -1, x.shape[1])


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    """(B, P, C) as (B, C, ...) of this shape, without a copy."""
    return rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
