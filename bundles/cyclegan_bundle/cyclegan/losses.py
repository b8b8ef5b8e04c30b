# SPDX-License-Identifier: Apache-2.0
"""The terms of the CycleGAN's loss, pure functions of what the networks made.

A `Translation` is one of the two directions, from its source domain S to the other domain T. With A the generator S
-> T and B the one T -> S: X -> Y has A = G, B = F, and Y -> X has A = F, B = G. Swapping the domains therefore swaps
the terms. Images and masks are (B, 1, H, W), images in units; means are taken over pixels.
"""

from typing import NamedTuple

from torch import Tensor

__all__ = ["GeneratorTerms", "Translation", "discriminator_loss", "generator_terms"]


class Translation(NamedTuple):
    """What one direction made of a batch of its source domain.

    Args:
        source: images s.
        nodule: bool, where s shows a nodule.
        fake: A(s).
        back: B(A(s)).
        same: B(s), which should leave s alone since s is already in B's target domain.
        score: D_T(A(s)), patch scores.
    """

    source: Tensor
    nodule: Tensor
    fake: Tensor
    back: Tensor
    same: Tensor
    score: Tensor


class GeneratorTerms(NamedTuple):
    """Terms of one direction, scalars; all but `adversarial` in units of HU_PER_UNIT HU."""

    adversarial: Tensor
    cycle: Tensor
    identity: Tensor
    nodule: Tensor

    def total(self, *, cycle_weight: float, identity_weight: float, nodule_weight: float) -> Tensor:
        """Weighted sum; the weight of the adversarial term is 1."""
        return (
            self.adversarial + cycle_weight * self.cycle + identity_weight * self.identity + nodule_weight * self.nodule
        )


def generator_terms(made: Translation) -> GeneratorTerms:
    """LSGAN (Mao et al., 2017, Eq. 9), cycle (Zhu et al., 2017, Eq. 2), identity (section 5.2) and nodule term.

    The nodule term is the mean absolute change of HU inside the nodules, so that a lesion keeps what the label says
    of it.
    """
    return GeneratorTerms(
        adversarial=(made.score.float() - 1).square().mean(),
        cycle=(made.back - made.source).abs().mean(),
        identity=(made.same - made.source).abs().mean(),
        nodule=_masked_mean((made.fake - made.source).abs(), made.nodule),
    )


def discriminator_loss(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """LSGAN loss of one discriminator (Mao et al., 2017, Eq. 9): real patches to 1, fakes to 0."""
    return 0.5 * ((real_score.float() - 1).square().mean() + fake_score.float().square().mean())


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`, 0 where the mask is empty."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)
