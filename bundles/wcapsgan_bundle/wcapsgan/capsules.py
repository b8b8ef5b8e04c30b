# SPDX-License-Identifier: Apache-2.0
"""Capsules and routing by agreement (Sabour, Frosst and Hinton, 2017, "Dynamic routing between capsules").

Letters of the paper: `u` primary capsules, `W` transformation matrices, `b` routing logits, `c` coupling coefficients,
`s` output capsules before and `v` after `squash`. Axes: b batch, n primary capsules, d their dimension, k output
capsules, o their dimension.
"""

import torch
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from .modules import convolution_of

__all__ = ["PrimaryCapsules", "RoutingCapsules", "squash"]


def squash(s: Tensor) -> Tensor:
    """Shrinks capsule lengths (last axis) into [0, 1), keeping directions (Sabour 2017, Eq. 1); any shape."""
    square = s.square().sum(dim=-1, keepdim=True)
    return square / (1 + square) * s / torch.sqrt(square + 1e-8)


class PrimaryCapsules(nn.Module):
    """Turns feature maps (B, C, H, W[, D]) into capsule vectors (B, n_maps * positions, dim), not squashed yet."""

    def __init__(self, in_channels: int, n_maps: int, dim: int, *, spatial_dims: int = 2) -> None:
        super().__init__()
        convolution, _ = convolution_of(spatial_dims)
        self.conv = convolution(in_channels, n_maps * dim, kernel_size=4, stride=2, padding=1)
        self.to_capsules = Rearrange("b (maps dim) ... -> b (maps ...) dim", dim=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_capsules(self.conv(x))


class RoutingCapsules(nn.Module):
    """Output capsules by routing (Sabour 2017, Procedure 1), without ever holding the votes `W_ij u_i`.

    The votes (B, n, k, o) are the memory of a capsule layer. Both sums over them can be had from smaller tensors:
    `s_j = sum_i c_ij W_ij u_i` is one matrix product of the coupled capsules `c_ij u_i` with `W`, and the agreement
    `(W_ij u_i) . v_j` is `u_i . (W_ij^T v_j)`.

    Two streams. The squashed primary capsules decide where each capsule goes, as in the paper. What then flows is the
    capsule before squashing, so that `s` is not bounded by the number of capsules: a Wasserstein critic must be able
    to grow with the distance of its input.

    Only the last agreement carries a gradient; the iterations before it are constants for the backward pass.

    Args:
        n_in: primary capsules.
        dim_in: their dimension.
        n_out: output capsules, among which each primary capsule divides itself.
        dim_out: their dimension.
        n_iterations: of the routing; 1 couples evenly.
    """

    def __init__(self, n_in: int, dim_in: int, n_out: int, dim_out: int, *, n_iterations: int = 3) -> None:
        super().__init__()
        self.n_iterations = n_iterations
        self.weight = nn.Parameter(torch.randn(n_out, n_in, dim_in, dim_out) * (n_out / (n_in * dim_in)) ** 0.5)

    def forward(self, poses: Tensor) -> Tensor:
        """Routes capsule vectors before squashing (B, n, d) to output capsules `s` (B, k, o), not squashed."""
        return self.gather(self.couplings(squash(poses)), poses)

    def gather(self, c: Tensor, u: Tensor) -> Tensor:
        """`s_j = sum_i c_ij W_ij u_i` for couplings (B, k, n) and capsules (B, n, d), shape (B, k, o) (Eq. 2)."""
        return torch.einsum("bknd,kndo->bko", c.unsqueeze(-1) * u.unsqueeze(1), self.weight)

    def agreement(self, u: Tensor, v: Tensor) -> Tensor:
        """`(W_ij u_i) . v_j` for capsules (B, n, d) and outputs (B, k, o), shape (B, k, n)."""
        return (torch.einsum("kndo,bko->bknd", self.weight, v) * u.unsqueeze(1)).sum(dim=-1)

    def couplings(self, u: Tensor) -> Tensor:
        """Coupling coefficients (B, k, n) of squashed capsules (B, n, d); they sum to 1 over k (Eq. 3)."""
        b = torch.zeros(u.shape[0], self.weight.shape[0], u.shape[1], dtype=u.dtype, device=u.device)
        c = b.softmax(dim=1)
        for iteration in range(1, self.n_iterations):
            v = squash(self.gather(c, u.detach())).detach()
            if iteration == self.n_iterations - 1:
                b = b + self.agreement(u, v)
            else:
                b = b + self.agreement(u.detach(), v).detach()
            c = b.softmax(dim=1)
        return c
