# SPDX-License-Identifier: Apache-2.0
"""Batch norm of the average generator: statistics of its own features (BigGAN's "standing statistics", Brock 2019).

The weights of the average generator are those of a long time, the running statistics that training leaves are those of
the last few batches of another network. Before each validation they are therefore taken anew; they are shipped with the
weights, and in evaluation mode a sample no longer depends on the others of its batch.
"""

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .data import CohortSamples
from .latents import draw_latents, seeded_generator

__all__ = ["StandingStatistics"]


class StandingStatistics:
    """Handler of an evaluator that gives a generator's batch norms their statistics before it starts.

    Args:
        network: the average generator; without batch norm nothing happens.
        dataset: where categories and diameters are drawn from.
        batch_size: of a forward pass.
        batches: over which the statistics are averaged.
        seed: of latents and conditions, the same at each validation.
    """

    def __init__(
        self, network: nn.Module, *, dataset: CohortSamples, batch_size: int, batches: int = 16, seed: int = 0
    ) -> None:
        self.network, self.dataset = network, dataset
        self.batch_size, self.batches, self.seed = batch_size, batches, seed

    def attach(self, engine: Engine) -> None:
        """At the start of each run of the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda engine: self())

    @torch.no_grad()
    def __call__(self) -> None:
        """Takes the statistics; leaves the network in evaluation mode."""
        norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        draw = seeded_generator(self.seed)
        device = next(self.network.parameters()).device
        self.network.train()
        for _ in range(self.batches):
            batch = self.dataset.draw(draw, self.batch_size)
            latent = draw_latents(draw, self.batch_size, self.network.latent_dim)
            self.network(*(values.to(device) for values in (latent, batch.category, batch.diameter_mm)))
        self.network.eval()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
