# SPDX-License-Identifier: Apache-2.0
"""What critic and generator play for: one class an objective, from the critic's values of real and generated samples.

Values are (B,), as the critic returns them: scores without bounds, logits, or the lengths of capsules. Losses are
scalars to be minimised. Everything else of a training (augmentation, average generator, diameter loss, data) is the
trainer's and the same for all, so that objectives and networks are compared and nothing beside them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

__all__ = ["Hinge", "Margin", "NonSaturating", "Objective", "Wasserstein"]


class Objective(ABC):
    """A game of critic and generator.

    Attributes:
        gradient_penalty_weight: of the mean squared distance of the critic's gradient norm from 1.
        penalty_interval: the penalty is taken at each so many-th critic step, and counts so many times there; 0: never.
    """

    gradient_penalty_weight: float = 0.0
    penalty_interval: int = 0

    @abstractmethod
    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the critic minimises, beside the gradient penalty."""

    @abstractmethod
    def generator_loss(self, fake: Tensor) -> Tensor:
        """What the generator minimises."""

    def figures(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Scalars that tell how the game stands, for the logs."""
        return {"real_value": real.mean(), "generated_value": fake.mean()}


@dataclass(frozen=True, kw_only=True)
class Wasserstein(Objective):
    """Wasserstein distance of a critic with a bounded gradient (Arjovsky et al., 2017; Gulrajani et al., 2017, Eq. 3).

    Args:
        gradient_penalty_weight: 10 in Gulrajani 2017.
        drift_weight: keeps real scores near 0, where nothing else would hold them (Karras et al., 2018).
        penalty_interval: more than 1 saves time (lazy regularisation, after Karras et al., 2020).

    Raises:
        ValueError: for an interval below 1; without its penalty a critic's scores mean nothing.
    """

    gradient_penalty_weight: float = 10.0
    drift_weight: float = 1e-3
    penalty_interval: int = 2

    def __post_init__(self) -> None:
        if self.penalty_interval < 1:
            raise ValueError(f"penalty_interval must be at least 1 critic step, got {self.penalty_interval}.")

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean() + self.drift_weight * real.square().mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def figures(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        return {"wasserstein": real.mean() - fake.mean()}


@dataclass(frozen=True)
class NonSaturating(Objective):
    """Logits, cross-entropy, and a generator that maximises log D (Goodfellow et al., 2014, section 3)."""

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return functional.softplus(-real).mean() + functional.softplus(fake).mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return functional.softplus(-fake).mean()


@dataclass(frozen=True)
class Hinge(Objective):
    """Scores that need not go beyond 1 and -1 (Lim and Ye, 2017; Brock et al., 2019)."""

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()

    def generator_loss(self, fake: Tensor) -> Tensor:
        return -fake.mean()


@dataclass(frozen=True, kw_only=True)
class Margin(Objective):
    """Lengths of a capsule in [0, 1): long for real, short for generated (Sabour 2017, Eq. 4; Jaiswal 2018).

    Args:
        long: length from which on a real sample costs nothing (0.9 in Sabour 2017).
        short: length below which a generated one costs nothing (0.1 there).
        down_weight: of the loss of generated samples (0.5 there).
    """

    long: float = 0.9
    short: float = 0.1
    down_weight: float = 0.5

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        too_long = functional.relu(fake - self.short).square().mean()
        return self.generator_loss(real) + self.down_weight * too_long

    def generator_loss(self, fake: Tensor) -> Tensor:
        return functional.relu(self.long - fake).square().mean()
