# SPDX-License-Identifier: Apache-2.0
"""Training of a generator and its critic: critic steps, then one generator step, and the average generator after it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from .batches import StepBatches, StepDraws, gathered, mean_over_processes
from .canvas import CanvasResampler
from .data import Batch, CohortSamples
from .diameters import mask_diameter_mm
from .losses import energy_distance, gradient_penalty
from .objectives import Objective
from .step_trainer import StepTrainer, descend

__all__ = ["COLLAPSED", "CriticSchedule", "LossSettings", "Players", "WCapsGANTrainer"]

_logger = logging.getLogger(__name__)

COLLAPSED = 0.15  # energy distance; measured: 0.3 and more where all outlines were alike, 0.02 where none were


@dataclass(frozen=True, eq=False, kw_only=True)
class Players:
    """The networks and what changes them.

    Args:
        generator: may be wrapped for distributed training, as `critic` may. Change a network's memory format before
            wrapping it, never after: DistributedDataParallel would silently scramble its gradients.
        critic: called as `critic(samples, category, diameter_mm)`, returns values (B,); see `MultiScaleCritic`.
        generator_optimizer: of the generator.
        critic_optimizer: of the critic.
        ema: the average generator.
    """

    generator: nn.Module
    critic: nn.Module
    generator_optimizer: Optimizer
    critic_optimizer: Optimizer
    ema: AveragedModel


@dataclass(frozen=True, kw_only=True)
class CriticSchedule:
    """How often and on what the critic learns.

    Args:
        n_critic: critic steps before each generator step, each with fresh reals and latents.
        separate_critic_batches: the critic sees real and generated samples in batches of their own, as a critic with
            batch norm must.
        shared_forward: the generator learns from the samples of the last critic step instead of fresh ones, which
            spares a pass through the generator.
    """

    n_critic: int = 1
    separate_critic_batches: bool = False
    shared_forward: bool = True


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What is minimised.

    Args:
        objective: what generator and critic play for.
        diameter_weight: of the difference between the diameter requested and the one made, a mm, in the generator's
            loss; 0 for lungs.
        energy_weight: of the energy distance of generated and real samples there.
        energy_size: pixels of the canvases (`CanvasResampler`) on which it is taken.
    """

    objective: Objective
    diameter_weight: float = 0.25
    energy_weight: float = 4.0
    energy_size: int = 16


class _Generated(NamedTuple):
    """Generated samples (B, 2, ...), and the real ones whose category and diameter were requested."""

    samples: Tensor
    requested: Batch

    @property
    def conditions(self) -> tuple[Tensor, Tensor]:
        """Category and diameter, each (B,)."""
        return self.requested.category, self.requested.diameter_mm


class WCapsGANTrainer(StepTrainer):
    """Trainer of generator and critic, with `loss` and each of its parts as floats in `state.output`.

    `state.metrics` holds the means of the epoch. `energy` is how far generated samples are from real ones as a set,
    seen small (`energy_distance`); a warning tells when it is that of a generator whose samples are all alike.

    Args:
        device: of the networks.
        max_epochs: of `epoch_length` generator steps each.
        epoch_length: generator steps.
        batches: what the steps draw from.
        players: networks and optimisers.
        losses: what they minimise.
        critic_schedule: steps of the critic.
        amp: bfloat16 autocast; None where the device has instructions for it.
        inferer: calls the generator.
        train_handlers: attached after the trainer's own.

    Raises:
        ValueError: when the generator makes samples of another dimension than the dataset has.
    """

    def __init__(  # noqa: PLR0913 - filled by keyword from a config
        self,
        device: torch.device | str,
        max_epochs: int,
        epoch_length: int,
        *,
        batches: StepBatches,
        players: Players,
        losses: LossSettings,
        critic_schedule: CriticSchedule,
        amp: bool | None = None,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        _check_dimensions(_unwrapped(players.generator), batches.dataset)
        super().__init__(device, max_epochs, epoch_length, amp=amp)
        self.batches, self.players, self.losses, self.critic_schedule = batches, players, losses, critic_schedule
        dataset = batches.dataset
        spacing_mm = None if dataset.fitted else dataset.spacing_mm
        self.canvas = CanvasResampler(frame=dataset.size, canvas=losses.energy_size, spacing_mm=spacing_mm)
        self.inferer = inferer or SimpleInferer()
        for network in (players.ema.module, _unwrapped(players.generator)):
            network.diameter_quantiles.copy_(dataset.diameter_quantiles())
            if dataset.fitted:
                network.shape_moments.copy_(dataset.shape_moments(len(network.shape_moments)))
        self._register_handlers(train_handlers)

    def step(self, iteration: int) -> dict[str, float]:
        draws = self.batches.step(iteration, self.state.device)
        generator, critic = self.players.generator, self.players.critic
        n_critic, shared = self.critic_schedule.n_critic, self.critic_schedule.shared_forward
        generator.train()
        critic.train().requires_grad_(True)
        end = iteration * n_critic
        critic_steps = []
        for critic_step in range(end - n_critic, end):
            fake = self._generate(draws, learning=shared and critic_step == end - 1)
            critic_steps.append(self._critic_step(critic_step, fake, draws))
        critic.requires_grad_(False)  # spares the generator step the critic's weight gradients
        if not shared:
            fake = self._generate(draws, learning=True)
        terms = self._generator_step(fake, draws)
        self.players.ema.update_parameters(_unwrapped(generator))
        means = {key: torch.stack([each[key] for each in critic_steps]).mean() for key in critic_steps[0]}
        return mean_over_processes({**means, **terms})

    def _generate(self, draws: StepDraws, *, learning: bool) -> _Generated:
        """Samples of the categories and diameters of fresh real ones, with a gradient when the generator learns."""
        requested = draws.reals()
        unwrapped = _unwrapped(self.players.generator)
        latent = draws.latents(unwrapped.latent_dim)
        network = self.players.generator if learning else unwrapped
        with torch.set_grad_enabled(learning), self.autocast():
            return _Generated(self.inferer(latent, network, requested.category, requested.diameter_mm), requested)

    def _critic_step(self, critic_step: int, generated: _Generated, draws: StepDraws) -> dict[str, Tensor]:
        objective = self.losses.objective
        real, fake = generated.requested.samples, generated.samples.detach()
        real, fake = (draws.augmented(samples) for samples in (real, fake))
        values = self._values(real, fake, generated.conditions)
        loss, figures = objective.critic_loss(*values), objective.figures(*values)
        if interval := objective.penalty_interval:
            penalty = torch.zeros((), device=loss.device)
            if critic_step % interval == 0:
                penalty = interval * gradient_penalty(
                    self.players.critic, real, fake, generated.conditions, draws.mixes()
                )
            loss = loss + objective.gradient_penalty_weight * penalty
            figures["gradient_penalty"] = penalty
        descend(self.players.critic_optimizer, loss)
        return {name: term.detach() for name, term in {"critic_loss": loss, **figures}.items()}

    def _generator_step(self, generated: _Generated, draws: StepDraws) -> dict[str, Tensor]:
        fake, requested, losses = generated.samples, generated.requested, self.losses
        with self.autocast():
            augmented = draws.augmented(fake)
            values = _unwrapped(self.players.critic)(augmented, *generated.conditions).float()
        loss = losses.objective.generator_loss(values)
        error = torch.zeros((), device=fake.device)
        if losses.diameter_weight > 0:
            made_mm = mask_diameter_mm(fake[:, 1], self.batches.dataset.pixel_mm(requested.diameter_mm))
            error = (made_mm - requested.diameter_mm).abs().mean()
            loss = loss + losses.diameter_weight * error
        with torch.set_grad_enabled(losses.energy_weight > 0):
            energy = energy_distance(
                *(gathered(self.canvas(x.float(), requested.diameter_mm)) for x in (requested.samples, fake))
            )
        if losses.energy_weight > 0:
            loss = loss + losses.energy_weight * energy
        descend(self.players.generator_optimizer, loss)
        return {"loss": loss.detach(), "diameter_error_mm": error.detach(), "energy": energy.detach()}

    def _values(self, real: Tensor, fake: Tensor, conditions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The critic's values of real and generated samples, each (B,)."""
        critic = self.players.critic
        with self.autocast():
            if self.critic_schedule.separate_critic_batches:
                return critic(real, *conditions).float(), critic(fake, *conditions).float()
            both = critic(torch.cat([real, fake]), *(torch.cat([c, c]) for c in conditions)).float()
        of_real, of_fake = both.chunk(2)
        return of_real, of_fake

    def _summarise(self, engine: Engine) -> None:
        super()._summarise(engine)
        energy = engine.state.metrics["energy"]
        if energy > COLLAPSED:
            _logger.warning(
                "Epoch %d: generated samples are far from real ones as a set (energy distance %.2f; of generators "
                "that have collapsed: %.2f and more). Raise energy_weight or lower the learning rates if it lasts.",
                engine.state.epoch,
                energy,
                COLLAPSED,
            )


def _check_dimensions(generator: nn.Module, dataset: CohortSamples) -> None:
    if (made := generator.spatial_dims) != dataset.spatial_dims:
        raise ValueError(
            f"{type(generator).__name__} makes samples of {made} dimensions, those of sample_type "
            f"{dataset.sample_type!r} have {dataset.spatial_dims}. The other methods have no cubes: leave out "
            "train_cube.json, or their overlay."
        )


def _unwrapped(network: nn.Module) -> Any:
    """The network inside a wrapper for distributed training."""
    return getattr(network, "module", network)
