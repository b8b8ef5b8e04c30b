# SPDX-License-Identifier: Apache-2.0
"""Training of a W-CapsuleGAN: critic steps, then one generator step, and the average generator after it.

Each step draws all of its randomness (samples, latents, augmentations, mixes) from a generator of its seed and its
number, so a training that was stopped goes on exactly, and processes that share a step draw shares of one batch.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from .augment import AugmentationRange, augment
from .data import Batch, CohortSamples
from .latents import draw_latents, seeded_generator
from .losses import CriticTerms, GeneratorTerms, LossWeights, disc_diameter_mm, gradient_penalty

__all__ = ["WCapsGANTrainer", "bfloat16_is_fast"]

logger = logging.getLogger(__name__)

COLLAPSED = 0.3  # share of the real samples' spread below which the generator is said to have collapsed


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; CPUs without such instructions emulate it, ten times slower."""
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


class WCapsGANTrainer(Trainer):
    """Trainer of generator and critic, with `loss` and each of its parts as floats in `state.output`.

    `state.metrics` holds the means of the epoch. A warning tells when the generated samples of an epoch differ much
    less among themselves than the real ones (mode collapse); `diversity` is that ratio.

    Args:
        device: of the networks.
        max_epochs: of `epoch_length` generator steps each.
        epoch_length: generator steps.
        dataset: where the real samples are drawn from.
        generator: may be wrapped for distributed training, as `critic` may. Change a network's memory format before
            wrapping it, never after: DistributedDataParallel would silently scramble its gradients.
        critic: see `CapsuleCritic`.
        generator_optimizer: of the generator.
        critic_optimizer: of the critic.
        ema: the average generator.
        batch_size: samples a step and process.
        critic_scale: the critic sees samples averaged over squares of that many pixels: a coarse critic costs less and
            teaches the outlines first; then go on with 1 (growing resolution, after Karras et al., 2018).
        n_critic: critic steps before each generator step, each with fresh reals and latents.
        weights: of the losses' terms.
        augmentation: drawn for real and generated samples alike; None for none.
        seed: of everything drawn.
        amp: bfloat16 autocast, where the device has it.
        inferer: calls the generator.
        train_handlers: attached after the trainer's own.
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
        critic_scale: int = 1,
        n_critic: int = 1,
        weights: LossWeights | None = None,
        augmentation: AugmentationRange | None = None,
        seed: int = 0,
        amp: bool = True,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] = (),
    ) -> None:
        super().__init__(device, max_epochs, range(epoch_length), epoch_length, decollate=False, amp=amp)
        self.dataset, self.batch_size, self.n_critic, self.seed = dataset, batch_size, n_critic, seed
        self.generator, self.critic, self.ema = generator, critic, ema
        self.generator_optimizer, self.critic_optimizer = generator_optimizer, critic_optimizer
        self.critic_scale = critic_scale
        self.weights = weights or LossWeights()
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
        draw = seeded_generator(self.seed, engine.state.iteration)
        self.generator.train()
        self.critic.train().requires_grad_(True)
        for _ in range(self.n_critic):
            batch = self._draw_reals(draw)
            critic_terms, diversity = self._critic_step(batch, draw)
        self.critic.requires_grad_(False)  # spares the generator step the critic's weight gradients
        generator_terms = self._generator_step(self._draw_reals(draw), draw)
        self.ema.update_parameters(_unwrapped(self.generator))
        return _averaged(
            {
                "loss": generator_terms.total(self.weights),
                "critic_loss": critic_terms.total(self.weights),
                "wasserstein": critic_terms.distance,
                "gradient_penalty": critic_terms.penalty,
                "diameter_error_mm": generator_terms.diameter,
                "diversity": diversity,
            }
        )

    def _critic_step(self, batch: Batch, draw: torch.Generator) -> tuple[CriticTerms, Tensor]:
        latent = self._draw_latents(draw)
        conditions = (batch.category, batch.diameter_mm)
        with torch.no_grad(), self._autocast():
            fake = self.inferer(latent, _unwrapped(self.generator), *conditions)
        diversity = _spread(fake) / _spread(batch.samples).clamp(min=1e-6)
        real, fake = (self._augmented(self._seen(samples), draw) for samples in (batch.samples, fake))
        with self._autocast():
            both = self.critic(torch.cat([real, fake]), *(torch.cat([c, c]) for c in conditions)).float()
        real_score, fake_score = both.chunk(2)
        mix = self._share(lambda count: torch.rand(count, generator=draw))
        penalty = gradient_penalty(self.critic, real, fake, conditions, mix)
        terms = CriticTerms(real_score.mean() - fake_score.mean(), penalty, real_score.square().mean())
        self.critic_optimizer.zero_grad(set_to_none=True)
        terms.total(self.weights).backward()
        self.critic_optimizer.step()
        return terms, diversity

    def _generator_step(self, batch: Batch, draw: torch.Generator) -> GeneratorTerms:
        latent = self._draw_latents(draw)
        conditions = (batch.category, batch.diameter_mm)
        with self._autocast():
            fake = self.inferer(latent, self.generator, *conditions)
            score = _unwrapped(self.critic)(self._augmented(self._seen(fake), draw), *conditions).float()
        error = torch.zeros((), device=fake.device)
        if self.weights.diameter > 0:
            error = (disc_diameter_mm(fake[:, 1], self.dataset.spacing_mm) - batch.diameter_mm).abs().mean()
        terms = GeneratorTerms(-score.mean(), error)
        self.generator_optimizer.zero_grad(set_to_none=True)
        terms.total(self.weights).backward()
        self.generator_optimizer.step()
        return terms

    def _draw_reals(self, draw: torch.Generator) -> Batch:
        """A batch of fresh real samples, or the share of it that this process has."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        batch = self.dataset.draw(draw, self.batch_size * world)
        return Batch(*(self._own(values) for values in batch))

    def _draw_latents(self, draw: torch.Generator) -> Tensor:
        dim = _unwrapped(self.generator).latent_dim
        return self._share(lambda count: draw_latents(draw, count, dim))

    def _seen(self, samples: Tensor) -> Tensor:
        """Samples at the critic's resolution."""
        if self.critic_scale == 1:
            return samples
        pool = nn.functional.avg_pool2d if samples.dim() == 4 else nn.functional.avg_pool3d
        return pool(samples, self.critic_scale)

    def _augmented(self, samples: Tensor, draw: torch.Generator) -> Tensor:
        if self.augmentation is None:
            return samples
        world = dist.get_world_size() if dist.is_initialized() else 1
        shape = torch.Size((len(samples) * world, *samples.shape[1:]))
        drawn = self.augmentation.draw(draw, shape)
        own = {
            name: self._own(value) for name, value in drawn._asdict().items() if name != "margin" and value is not None
        }
        return augment(samples, drawn._replace(**own))

    def _share(self, make: Any) -> Tensor:
        """Of what `make(count)` draws for all processes, the rows of this one."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        return self._own(make(self.batch_size * world))

    def _own(self, values: Tensor) -> Tensor:
        """The rows of this process, on its device."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return values[rank::world].to(self.state.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.amp)

    def _collect(self, engine: Engine) -> None:
        self._epoch_outputs.append(engine.state.output)

    def _summarise(self, engine: Engine) -> None:
        """Puts the epoch's means into the metrics, and warns of collapse."""
        outputs, self._epoch_outputs = self._epoch_outputs, []
        engine.state.metrics = {key: sum(o[key] for o in outputs) / len(outputs) for key in outputs[0]}
        diversity = engine.state.metrics["diversity"]
        if diversity < COLLAPSED:
            logger.warning(
                "Epoch %d: generated samples differ among themselves %.2f times as much as real ones (mode collapse). "
                "Lower the learning rates or raise n_critic if it lasts.",
                engine.state.epoch,
                diversity,
            )


def _unwrapped(network: nn.Module) -> Any:
    """The network inside a wrapper for distributed training."""
    return getattr(network, "module", network)


def _spread(samples: Tensor) -> Tensor:
    """Mean over pixels of the standard deviation over the samples' images."""
    return samples[:, 0].std(dim=0).mean()


def _averaged(terms: dict[str, Tensor]) -> dict[str, float]:
    """Floats, averaged over the processes."""
    values = torch.stack([value.detach().float() for value in terms.values()])
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return dict(zip(terms, values.tolist(), strict=True))
