# SPDX-License-Identifier: Apache-2.0
"""Training of the detail stages of a cascade against a local capsule critic.

Real and generated patches stand beside the same coarse image and have the same texture, so the critic compares them
pair by pair, place by place (Jolicoeur-Martineau, 2019): what both share tells it nothing. Penalties on its slope at
both keep the two from circling round each other (Mescheder et al., 2018); they are taken as differences, without a
second derivative. (Measured: with a tenth of the weight the critic's scores grew without bound, with twenty times as
much it saw nothing; at equal learning rates the generator undid in four steps what the critic had learnt in thirty.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from .cascade import Cascade
from .latents import seeded_generator
from .patches import DetailPatches
from .step_trainer import StepTrainer, descend
from .texture import TextureStyle, texture

__all__ = ["DetailLosses", "DetailPlayers", "DetailTrainer"]

_STYLE_PATCHES = 320  # from which the scale of textures is taken
_STYLE_SEED = 0  # of those: they are part of what a style means, whatever the training's seed


@dataclass(frozen=True, eq=False, kw_only=True)
class DetailPlayers:
    """The networks and what changes them.

    Args:
        cascade: of which the detail learns and the layout stays.
        critic: see `LocalCapsuleCritic`.
        generator_optimizer: of `cascade.detail`.
        critic_optimizer: of the critic.
        ema: the average cascade.
    """

    cascade: Cascade
    critic: nn.Module
    generator_optimizer: Optimizer
    critic_optimizer: Optimizer
    ema: AveragedModel


@dataclass(frozen=True, kw_only=True)
class DetailLosses:
    """Weights of what is minimised beside the game itself.

    Args:
        penalty_weight: of the squared slope of the critic's scores, real and generated; halved in the loss.
        penalty_px: standard deviation of the noise with which the slope is measured, in units of [-1, 1].
        drift_weight: of the mean square of the critic's scores.
        consistency_weight: of the difference between generated patches and their coarse image.
        texture_weight: of the difference in noise and sharpness between generated patches and their real ones.
    """

    penalty_weight: float = 0.05
    penalty_px: float = 0.01
    drift_weight: float = 1e-3
    consistency_weight: float = 5.0
    texture_weight: float = 1.0


class _Pairs(NamedTuple):
    """Real and generated patches (B, 1, S, S) beside their coarse images (B, 1, s, s)."""

    real: Tensor
    generated: Tensor
    coarse: Tensor


class DetailTrainer(StepTrainer):
    """Trainer of the detail, with `loss` and its parts as floats in `state.output`, their means in `state.metrics`.

    It runs in one process.

    Args:
        device: of the networks.
        max_epochs: of `epoch_length` steps each.
        epoch_length: steps.
        patches: real ones.
        batch_size: patches a step.
        seed: of everything drawn.
        players: networks and optimisers.
        losses: weights.
        amp: bfloat16 autocast; None where the device has instructions for it.
        train_handlers: attached after the trainer's own.

    Raises:
        ValueError: when a patch or its margin is no multiple of the detail's factor.
    """

    def __init__(  # noqa: PLR0913 - filled by keyword from a config
        self,
        device: torch.device | str,
        max_epochs: int,
        epoch_length: int,
        *,
        patches: DetailPatches,
        batch_size: int,
        seed: int,
        players: DetailPlayers,
        losses: DetailLosses = DetailLosses(),
        amp: bool | None = None,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        super().__init__(device, max_epochs, epoch_length, amp=amp)
        self.patches, self.batch_size, self.seed = patches, batch_size, seed
        self.players, self.losses = players, losses
        size, margin, factor = patches.settings.size, patches.settings.margin, players.cascade.detail.factor
        if size % factor or margin % factor:
            raise ValueError(
                f"size and margin of the patches must be multiples of {factor} pixels, those of a coarse one; got "
                f"{size} and {margin}."
            )
        self.margin = margin // factor
        known = patches.draw(seeded_generator(_STYLE_SEED), _STYLE_PATCHES)
        style_dim = players.cascade.detail.style_dim
        self.style = TextureStyle(self._inner(known), style_dim=style_dim).to(self.state.device)
        self._register_handlers(train_handlers)

    def step(self, iteration: int) -> dict[str, float]:
        draw = seeded_generator(self.seed, iteration)
        self.players.cascade.detail.train()
        pairs = self._pairs(draw)
        terms = self._critic_step(pairs, draw)
        terms |= self._generator_step(pairs)
        self.players.ema.update_parameters(self.players.cascade)
        return {name: float(value) for name, value in terms.items()}

    def _pairs(self, draw: torch.Generator) -> _Pairs:
        """Fresh patches, and the generated ones of the same coarse images and textures, with a gradient."""
        detail, device = self.players.cascade.detail, self.state.device
        patches = self.patches.draw(draw, self.batch_size).to(device)
        real = self._inner(patches).contiguous(memory_format=torch.channels_last)
        seen = functional.avg_pool2d(patches, detail.factor)
        shapes = detail.noise_shapes(seen.shape[-2], seen.shape[-1], margin=self.margin)
        free = torch.randn(self.batch_size, self.style.free, generator=draw).to(device)
        noise = [torch.randn(self.batch_size, *shape, generator=draw).to(device) for shape in shapes]
        with torch.no_grad():
            style = self.style(real, free)
        with self.autocast():
            generated = detail(seen, style, noise, self.margin).float()
        return _Pairs(real, generated, functional.avg_pool2d(real, detail.factor))

    def _critic_step(self, pairs: _Pairs, draw: torch.Generator) -> dict[str, Tensor]:
        critic, losses, coarse = self.players.critic.train().requires_grad_(True), self.losses, pairs.coarse
        fake = pairs.generated.detach()
        count = max(1, self.batch_size // 3)  # of the patches at which the slope is measured
        moved = [self._moved(x[:count], draw) for x in (pairs.real, fake)]
        with self.autocast():
            scores = critic(
                torch.cat([pairs.real, fake, *moved]), torch.cat([coarse, coarse, coarse[:count], coarse[:count]])
            ).float()
        of_real, of_fake, real_moved, fake_moved = scores.split([self.batch_size, self.batch_size, count, count])
        slopes = [
            (real_moved - of_real[:count]) / losses.penalty_px,
            (fake_moved - of_fake[:count]) / losses.penalty_px,
        ]
        penalty = sum(slope.square().mean() for slope in slopes)
        game = functional.softplus(of_fake - of_real).mean()
        loss = game + losses.penalty_weight / 2 * penalty + losses.drift_weight * scores.square().mean()
        descend(self.players.critic_optimizer, loss)
        return {
            "critic_loss": game.detach(),
            "penalty": penalty.detach(),
            "preference": (of_real - of_fake).mean().detach(),
        }

    def _generator_step(self, pairs: _Pairs) -> dict[str, Tensor]:
        critic, losses = self.players.critic.requires_grad_(False), self.losses
        with self.autocast():
            with torch.no_grad():
                of_real = critic(pairs.real, pairs.coarse).float()
            of_fake = critic(pairs.generated, pairs.coarse).float()
        game = functional.softplus(of_real - of_fake).mean()
        factor = self.players.cascade.detail.factor
        consistency = (functional.avg_pool2d(pairs.generated, factor) - pairs.coarse).abs().mean()
        grain = (texture(pairs.generated) - texture(pairs.real)).abs().mean()
        loss = game + losses.consistency_weight * consistency + losses.texture_weight * grain
        descend(self.players.generator_optimizer, loss)
        return {"loss": loss.detach(), "consistency": consistency.detach(), "texture": grain.detach()}

    def _moved(self, images: Tensor, draw: torch.Generator) -> Tensor:
        noise = torch.randn(images.shape, generator=draw).to(images)
        return images + self.losses.penalty_px * noise

    def _inner(self, patches: Tensor) -> Tensor:
        """Patches without their margin."""
        margin = self.patches.settings.margin
        return patches[:, :, margin:-margin, margin:-margin] if margin else patches
