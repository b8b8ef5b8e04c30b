"""What `gan_training.py` compares with: a training written as public code does it, with the same weights and draws."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["loop_routing", "write_plainly"]


def write_plainly(trainer: Any, *, plain_upsampling: bool) -> None:
    """Replaces what the bundle does cleverly by what PyTorch code usually does; weights and draws stay."""
    import wcapsgan.losses
    from wcapsgan.capsules import RoutingCapsules
    from wcapsgan.double_backward import InputGradientLeakyReLU
    from wcapsgan.modules import StyledBlock, Upsample

    def up_block(block: Any) -> Callable[..., Tensor]:
        def forward(x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
            x = block.norm(block.smooth(block.convolution(x)) + block.noise_strength * noise)
            return block.activation(x * (1 + block.scale(style)) + block.shift(style))

        return forward

    for network in (trainer.players.generator, trainer.players.critic):
        for module in network.modules():
            if isinstance(module, StyledBlock):
                module.forward = up_block(module)
            elif isinstance(module, Upsample) and plain_upsampling:
                module.forward = lambda x, m=module: functional.conv2d(
                    functional.interpolate(x, scale_factor=2.0), m.weight.transpose(0, 1).flip(2, 3), padding=1
                )
            elif isinstance(module, RoutingCapsules):
                module.forward = lambda poses, m=module: loop_routing(m, poses)
            elif isinstance(module, InputGradientLeakyReLU):
                module.forward = lambda x, m=module: functional.leaky_relu(x, m.negative_slope)
    wcapsgan.losses.input_gradient_only = nullcontext
    if trainer.critic_schedule.shared_forward:
        trainer.critic_schedule = replace(trainer.critic_schedule, shared_forward=False)
        trainer._generate = Regenerating(trainer)


class Regenerating:
    """Passes the latents of the last critic step through the generator once more for the generator's step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def __call__(self, draws: Any, *, learning: bool) -> Any:
        from wcapsgan.trainer import _Generated

        if not learning:
            self.requested = draws.reals()
            self.latent = draws.latents(self.trainer.players.generator.latent_dim)
        with torch.set_grad_enabled(learning):
            conditions = self.requested.category, self.requested.diameter_mm
            samples = self.trainer.players.generator(self.latent, *conditions)
        return _Generated(samples, self.requested)


def loop_routing(layer: Any, poses: Tensor) -> Tensor:
    """Routing as in public code: all votes at once, kept over the iterations; two streams as in `RoutingCapsules`."""
    from wcapsgan.capsules import squash

    u = squash(poses)
    votes = (layer.weight[None] * u[:, None, :, :, None]).sum(dim=3)  # (B, k, n, o)
    still = votes.detach()
    b = poses.new_zeros(votes.shape[:3])
    for iteration in range(layer.n_iterations):
        c = b.softmax(dim=1)
        if iteration == layer.n_iterations - 1:
            break
        v = squash((c.unsqueeze(-1) * still).sum(dim=2)).detach()
        last = iteration == layer.n_iterations - 2
        b = (b if last else b.detach()) + ((votes if last else still) * v.unsqueeze(2)).sum(dim=-1)
    flowing = (layer.weight[None] * poses[:, None, :, :, None]).sum(dim=3)
    return (c.unsqueeze(-1) * flowing).sum(dim=2)
