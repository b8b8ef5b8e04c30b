# SPDX-License-Identifier: Apache-2.0
"""Training of a generator and its critic: critic steps, then one generator step, and the average generator after it.

What they play for is an `Objective`. Each step draws all of its randomness (samples, latents, augmentations, mixes)
from a generator of its seed and its number, so a training that was stopped goes on exactly, and processes that share a
step draw shares of one batch.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from .augment import AugmentationRange
from .data import Batch, CohortSamples
from .draws import StepDraws, averaged, gathered
from .latents import seeded_generator
from .losses import energy_distance, gradient_penalty, mask_diameter_mm
from .objectives import Objective, Wasserstein
from .precision import bfloat16_is_fast
from .zoom import Zoom

__all__ = ["WCapsGANTrainer"]

logger = logging.getLogger(__name__)

COLLAPSED = 0.15  # energy distance; measured: 0.3 and more where all outlines were alike, 0.02 where none were


class Generated(NamedTuple):
    """Generated samples (B, 2, ...), and real ones whose category and diameter they were asked for."""

    samples: Tensor
    asked: Batch

    @property
    def conditions(self) -> tuple[Tensor, Tensor]:
        """Category and diameter, each (B,)."""
        return self.asked.category, self.asked.diameter_mm


class WCapsGANTrainer(Trainer):
    """Trainer of generator and critic, with `loss` and each of its parts as floats in `state.output`.

    `state.metrics` holds the means of the epoch. `energy` is how far generated samples are from real ones as a set,
    seen small (`energy_distance`); a warning tells when it is that of a generator whose samples are all alike.

    Args:
        device: of the networks.
        max_epochs: of `epoch_length` generator steps each.
        epoch_length: generator steps.
        dataset: where the real samples are drawn from.
        generator: may be wrapped for distributed training, as `critic` may. Change a network's memory format before
            wrapping it, never after: DistributedDataParallel would silently scramble its gradients.
        critic: called as `critic(samples, category, diameter_mm)`, returns values (B,); see `CapsuleCritic`.
        generator_optimizer: of the generator.
        critic_optimizer: of the critic.
        ema: the average generator.
        batch_size: samples a step and process.
        n_critic: critic steps before each generator step, each with fresh reals and latents.
        objective: what the two play for; by default the Wasserstein distance with its gradient penalty.
        diameter_weight: how much a mm of difference between the diameter asked for and the one made counts in the
            generator's loss; 0 for lungs.
        energy_weight: how much the energy distance of generated and real samples counts there.
        energy_size: pixels of the canvases (`Zoom`) on which it is taken.
        apart: the critic sees real and generated samples in batches of their own, as a critic with batch norm must.
        shared_forward: the generator learns from the samples of the last critic step instead of fresh ones, which
            spares a pass through the generator.
        augmentation: drawn for real and generated samples alike; None for none.
        seed: of everything drawn.
        amp: bfloat16 autocast, where the device has it.
        inferer: calls the generator.
        train_handlers: attached after the trainer's own.

    Raises:
        ValueError: when the generator makes samples of another dimension than the dataset has.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        epoch_length: int,
        dataset: CohortSamples,
        *,
        generator: nn.Module,
        critic: nn.Module,
        generator_optimizer: Optimizer,
        critic_optimizer: Optimizer,
        ema: AveragedModel,
        batch_size: int,
        n_critic: int = 1,
        objective: Objective | None = None,
        diameter_weight: float = 0.25,
        energy_weight: float = 0.0,
        energy_size: int = 16,
        apart: bool = False,
        shared_forward: bool = False,
        augmentation: AugmentationRange | None = None,
        seed: int = 0,
        amp: bool = True,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        _check_axes(_unwrapped(generator), dataset)
        super().__init__(device, max_epochs, range(epoch_length), epoch_length, decollate=False, amp=amp)
        self.dataset, self.batch_size, self.n_critic, self.seed = dataset, batch_size, n_critic, seed
        self.generator, self.critic, self.ema = generator, critic, ema
        self.generator_optimizer, self.critic_optimizer = generator_optimizer, critic_optimizer
        self.apart, self.shared_forward = apart, shared_forward
        self.objective, self.diameter_weight = objective or Wasserstein(), diameter_weight
        self.energy_weight, self.canvas = energy_weight, Zoom(dataset.size, energy_size, dataset.spacing_mm)
        self.augmentation = augmentation
        self.inferer = inferer or SimpleInferer()
        self.amp = amp and bfloat16_is_fast(self.state.device)
        for average in (ema.module, _unwrapped(generator)):
            average.diameter_quantiles.copy_(dataset.diameter_quantiles())
        self._epoch_outputs: list[dict[str, float]] = []
        self.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._summarise)
        self._register_handlers(train_handlers)

    def run(self) -> None:
        """Runs until `max_epochs`; bfloat16 needs no gradient scaler."""
        super(Trainer, self).run()

    def _iteration(self, engine: Engine, batchdata: Any) -> dict[str, float]:
        draws = self._draws(engine.state.iteration)
        self.generator.train()
        self.critic.train().requires_grad_(True)
        end = engine.state.iteration * self.n_critic
        critic_steps = []
        for step in range(end - self.n_critic, end):
            fake = self._generate(draws, learning=self.shared_forward and step == end - 1)
            critic_steps.append(self._critic_step(step, fake, draws))
        self.critic.requires_grad_(False)  # spares the generator step the critic's weight gradients
        if not self.shared_forward:
            fake = self._generate(draws, learning=True)
        terms = self._generator_step(fake, draws)
        self.ema.update_parameters(_unwrapped(self.generator))
        means = {key: torch.stack([step[key] for step in critic_steps]).mean() for key in critic_steps[0]}
        return averaged({**means, **terms})

    def _generate(self, draws: StepDraws, *, learning: bool) -> Generated:
        """Samples of the categories and diameters of fresh real ones, with a gradient when the generator learns."""
        asked = draws.reals()
        latent = draws.latents(_unwrapped(self.generator).latent_dim)
        network = self.generator if learning else _unwrapped(self.generator)
        with torch.set_grad_enabled(learning), self._autocast():
            return Generated(self.inferer(latent, network, asked.category, asked.diameter_mm), asked)

    def _critic_step(self, step: int, generated: Generated, draws: StepDraws) -> dict[str, Tensor]:
        real, fake = generated.asked.samples, generated.samples.detach()
        real, fake = (draws.augmented(samples) for samples in (real, fake))
        values = self._values(real, fake, generated.conditions)
        loss, figures = self.objective.critic_loss(*values), self.objective.figures(*values)
        if interval := self.objective.penalty_interval:
            penalty = torch.zeros((), device=loss.device)
            if step % interval == 0:
                mix = draws.shares()
                penalty = interval * gradient_penalty(self.critic, real, fake, generated.conditions, mix)
            loss = loss + self.objective.gradient_penalty * penalty
            figures["gradient_penalty"] = penalty
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_optimizer.step()
        return {name: term.detach() for name, term in {"critic_loss": loss, **figures}.items()}

    def _generator_step(self, generated: Generated, draws: StepDraws) -> dict[str, Tensor]:
        fake, asked = generated.samples, generated.asked
        with self._autocast():
            seen = draws.augmented(fake)
            values = _unwrapped(self.critic)(seen, *generated.conditions).float()
        loss = self.objective.generator_loss(values)
        error = torch.zeros((), device=fake.device)
        if self.diameter_weight > 0:
            error = (mask_diameter_mm(fake[:, 1], self.dataset.spacing_mm) - asked.diameter_mm).abs().mean()
            loss = loss + self.diameter_weight * error
        with torch.set_grad_enabled(self.energy_weight > 0):
            energy = energy_distance(
                *(gathered(self.canvas(x.float(), asked.diameter_mm)) for x in (asked.samples, fake))
            )
        if self.energy_weight > 0:
            loss = loss + self.energy_weight * energy
        self.generator_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.generator_optimizer.step()
        return {"loss": loss.detach(), "diameter_error_mm": error.detach(), "energy": energy.detach()}

    def _values(self, real: Tensor, fake: Tensor, conditions: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The critic's values of real and generated samples, each (B,)."""
        with self._autocast():
            if self.apart:
                return self.critic(real, *conditions).float(), self.critic(fake, *conditions).float()
            both = self.critic(torch.cat([real, fake]), *(torch.cat([c, c]) for c in conditions)).float()
        of_real, of_fake = both.chunk(2)
        return of_real, of_fake

    def _draws(self, iteration: int) -> StepDraws:
        return StepDraws(
            seeded_generator(self.seed, iteration),
            dataset=self.dataset,
            augmentation=self.augmentation,
            batch_size=self.batch_size,
            device=self.state.device,
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.amp)

    def _collect(self, engine: Engine) -> None:
        self._epoch_outputs.append(engine.state.output)

    def _summarise(self, engine: Engine) -> None:
        """Puts the epoch's means into the metrics, and warns of collapse."""
        outputs, self._epoch_outputs = self._epoch_outputs, []
        engine.state.metrics = {key: sum(o[key] for o in outputs) / len(outputs) for key in outputs[0]}
        energy = engine.state.metrics["energy"]
        if energy > COLLAPSED:
            logger.warning(
                "Epoch %d: generated samples are far from real ones as a set (energy distance %.2f; of generators "
                "that have collapsed: %.2f and more). Raise energy_weight or lower the learning rates if it lasts.",
                engine.state.epoch,
                energy,
                COLLAPSED,
            )


def _check_axes(generator: nn.Module, dataset: CohortSamples) -> None:
    axes = dataset.kind.axes
    if (made := getattr(generator, "spatial_dims", axes)) != axes:
        raise ValueError(
            f"{type(generator).__name__} makes samples of {made} dimensions, those of layer {dataset.layer!r} have "
            f"{axes}. The methods to compare with have no cubes: leave out train_cube.json, or their overlay."
        )


def _unwrapped(network: nn.Module) -> Any:
    """The network inside a wrapper for distributed training."""
    return getattr(network, "module", network)
