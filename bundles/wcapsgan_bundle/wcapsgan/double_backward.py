# SPDX-License-Identifier: Apache-2.0
"""Layers whose second derivative, which a gradient penalty needs, costs as much as their first.

PyTorch writes the gradient of a convolution's gradient by its weights as another convolution, with the image of
gradients as its kernel: on a CPU that is several times slower than the weight gradient that it equals. With `y = W x`
and `g` the gradient of `y`, the penalty sees `W^T g`; a gradient `v` of that gives `W v` for `g` and, for `W`, the
weight gradient of a convolution with input `v` and output gradient `g`. The second derivative of the activation is
zero; PyTorch writes it down pixel by pixel and adds it. (Measured: 1.4 times faster through a critic of 64 x 64.)

The penalty is on the critic's gradient by the samples alone. Within `input_gradient_only` convolutions therefore leave
out the derivative by the weights when a backward pass is recorded (`create_graph`), and give it in the pass that
follows. Outside of it these layers are PyTorch's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

__all__ = [
    "NEGATIVE_SLOPE",
    "InputGradientConv2d",
    "InputGradientConv3d",
    "InputGradientLeakyReLU",
    "input_gradient_only",
]

NEGATIVE_SLOPE = 0.2  # of the LeakyReLUs of all networks here, as in DCGAN (Radford et al., 2016, section 3)

_input_gradient_only: ContextVar[bool] = ContextVar("input_gradient_only", default=False)


@contextmanager
def input_gradient_only() -> Iterator[None]:
    """For the forward pass of a network whose derivative by its input is to be differentiated."""
    token = _input_gradient_only.set(True)
    try:
        yield
    finally:
        _input_gradient_only.reset(token)


class InputGradientConv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, for networks under a gradient penalty; zeros outside the image."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and _only_input_gradient():
            return _convolve(self, x)
        return self._conv_forward(x, self.weight, self.bias)


class InputGradientConv3d(nn.Conv3d):
    """`torch.nn.Conv3d`, likewise."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and _only_input_gradient():
            return _convolve(self, x)
        return self._conv_forward(x, self.weight, self.bias)


class InputGradientLeakyReLU(nn.LeakyReLU):
    """`torch.nn.LeakyReLU`, likewise; the slope must be positive."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and _only_input_gradient():
            return _activate(self, x)
        return nn.functional.leaky_relu(x, self.negative_slope)


@torch.jit.unused
def _only_input_gradient() -> bool:
    return _input_gradient_only.get()


class _Geometry(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def gradients(self, g: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> tuple[Any, ...]:
        """By x, weight and bias."""
        none = [0] * len(self.stride)
        rest = (self.stride, self.padding, self.dilation, False, none, self.groups, wanted)
        return torch.ops.aten.convolution_backward(g, x, weight, [weight.shape[0]], *rest)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        none = [0] * len(self.stride)
        return torch.convolution(x, weight, bias, self.stride, self.padding, self.dilation, False, none, self.groups)


@torch.jit.unused
def _convolve(layer: Any, x: Tensor) -> Tensor:
    geometry = _Geometry(layer.stride, layer.padding, layer.dilation, layer.groups)
    return _Convolution.apply(x, layer.weight, layer.bias, geometry)


class _Convolution(Function):
    """`W x + bias`; its derivative by x may be differentiated once more, that by W and bias not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return geometry.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _InputGradient.apply(g, weight, x.shape, ctx.geometry), None, None, None
        needed = ctx.needs_input_grad
        return *ctx.geometry.gradients(g, x, weight, (needed[0], needed[1], needed[2])), None


class _InputGradient(Function):
    """`W^T g` for an input of a shape."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, weight: Tensor, shape: torch.Size, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(g, weight)
        ctx.geometry = geometry
        return geometry.gradients(g, g.new_empty(()).expand(shape), weight, (True, False, False))[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        g, weight = ctx.saved_tensors
        of_g = ctx.geometry.forward(v, weight, None) if ctx.needs_input_grad[0] else None
        of_weight = ctx.geometry.gradients(g, v, weight, (False, True, False))[1]
        return of_g, of_weight, None, None


@torch.jit.unused
def _activate(layer: Any, x: Tensor) -> Tensor:
    return _Activation.apply(x, layer.negative_slope)


class _Activation(Function):
    """The identity, times `slope` where negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        y = nn.functional.leaky_relu(x, slope)
        ctx.save_for_backward(y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return _ActivationGradient.apply(g, ctx.saved_tensors[0].detach(), ctx.slope), None


class _ActivationGradient(Function):
    """A gradient through the activation whose output was `y`."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, y: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(y)
        ctx.slope = slope
        return torch.ops.aten.leaky_relu_backward(g, y, slope, True)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        return torch.ops.aten.leaky_relu_backward(v, ctx.saved_tensors[0], ctx.slope, True), None, None
