# SPDX-License-Identifier: Apache-2.0
"""The terms of the CycleGAN's loss, pure functions of what the networks translation.

Three terms keep what a label says: the nodule's HU, the nodule's volume, and the outline of the lung.

A `Translation` is one of the two directions, from its source domain S to the other domain T. With A the generator S
-> T and B the one T -> S: X -> Y has A = G, B = F, and Y -> X has A = F, B = G. Swapping the domains therefore swaps
the terms. Images and masks are (B, 1, H, W), images in units; means are taken over pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, sigmoid, where
from torch.nn.functional import max_pool2d

from .common.hounsfield import NETWORK_WINDOW

__all__ = [
    "GeneratorLoss",
    "GeneratorTerms",
    "Translation",
    "discriminator_loss",
    "generator_terms",
    "outline_change",
    "volume_change",
]

# Chosen by hand, not fitted. The committed weights were trained with these values.
MARGIN_PX = 3  # ring around a nodule's mask: where it may grow to, and what it stands out from; 2 mm at 0.7 mm a pixel
VOLUME_TOLERANCE = 0.05  # share of its volume by which a nodule may change at little cost; validation allows 0.1
OUTLINE_TOLERANCE = 0.2  # share of the way from lung to tissue that a pixel may go at little cost: noise goes less far
SOFT_UNIT = 50 / NETWORK_WINDOW.hu_per_unit  # 50 HU, the width of a soft threshold: a sharp one has no gradient
OUTLINE_UNIT = NETWORK_WINDOW.unit(-500.0)  # half way between lung (-850 HU) and tissue, roughly
_PIXELS = (1, 2, 3)


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
    """Terms of one direction, scalars: `cycle`, `identity`, `nodule` in units of the window, the others without."""

    adversarial: Tensor
    cycle: Tensor
    identity: Tensor
    nodule: Tensor
    volume: Tensor
    outline: Tensor


@dataclass(frozen=True, kw_only=True)
class GeneratorLoss:
    """The weighted sum of the terms of one direction; the adversarial term has the weight 1.

    Args:
        cycle_weight: of returning to the source domain.
        identity_weight: of leaving alone what already is in the target domain.
        nodule_weight: of the HU inside nodules.
        volume_weight: of the nodules' volume.
        outline_weight: of the outline of the lung.
        tolerance_hu: see `generator_terms`.
    """

    cycle_weight: float = 3.0
    identity_weight: float = 1.5
    nodule_weight: float = 4.0
    volume_weight: float = 1.0
    outline_weight: float = 5.0
    tolerance_hu: float = 40.0

    def terms(self, translation: Translation) -> GeneratorTerms:
        """The terms of one direction, without their weights."""
        return generator_terms(translation, tolerance_hu=self.tolerance_hu)

    def total(self, terms: GeneratorTerms) -> Tensor:
        """The sum of the terms, each times its weight."""
        weighted = terms._asdict()
        total = weighted.pop("adversarial")
        for name, term in weighted.items():
            total = total + getattr(self, f"{name}_weight") * term
        return total


def generator_terms(translation: Translation, *, tolerance_hu: float) -> GeneratorTerms:
    """LSGAN (Mao et al., 2017, Eq. 9), cycle (Zhu et al., 2017, Eq. 2), identity (section 5.2), and what keeps labels.

    `nodule` is the mean absolute change of HU inside the nodules; `volume` and `outline` are the means of those
    functions. All of them have a tolerance: a change below it costs by its square, above it half of it less (Huber,
    1964). A plain absolute value costs the first HU as much as the last one, and, since the texture at stake is small,
    holds the generators at the identity.

    Args:
        translation: what one direction made of a batch.
        tolerance_hu: of a pixel in `cycle`, `identity` and `nodule`.
    """
    unit = tolerance_hu / NETWORK_WINDOW.hu_per_unit
    return GeneratorTerms(
        adversarial=(translation.score.float() - 1).square().mean(),
        cycle=_cost(translation.back - translation.source, unit).mean(),
        identity=_cost(translation.same - translation.source, unit).mean(),
        nodule=_masked_mean(_cost(translation.fake - translation.source, unit), translation.nodule),
        volume=_cost(volume_change(translation.source, translation.fake, translation.nodule), VOLUME_TOLERANCE).mean(),
        outline=_cost(outline_change(translation.source, translation.fake), OUTLINE_TOLERANCE).mean(),
    )


def volume_change(source: Tensor, fake: Tensor, nodule: Tensor) -> Tensor:
    """By how much of itself the nodule of each image (B,) grew or shrank; 0 where there is none.

    The volume is the soft count of pixels, in the nodule and `MARGIN_PX` around it, that are denser than the middle
    between the nodule's mean and that of this margin, both before.
    """
    weight = nodule.to(source.dtype)
    near = max_pool2d(weight, 2 * MARGIN_PX + 1, stride=1, padding=MARGIN_PX)
    around = near - weight
    inside, outside = (
        (source * part).sum(_PIXELS, keepdim=True) / part.sum(_PIXELS, keepdim=True).clamp(min=1)
        for part in (weight, around)
    )
    middle = (inside + outside) / 2
    before, after = ((near * sigmoid((image - middle) / SOFT_UNIT)).sum(_PIXELS) for image in (source, fake))
    return (after - before).abs() / weight.sum(_PIXELS).clamp(min=1)


def outline_change(source: Tensor, fake: Tensor) -> Tensor:
    """By how much each pixel passes from lung to tissue or back, softly, at `OUTLINE_UNIT`: outline, vessels."""
    return (sigmoid((fake - OUTLINE_UNIT) / SOFT_UNIT) - sigmoid((source - OUTLINE_UNIT) / SOFT_UNIT)).abs()


def discriminator_loss(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """LSGAN loss of one discriminator (Mao et al., 2017, Eq. 9): real patches to 1, fakes to 0."""
    return 0.5 * ((real_score.float() - 1).square().mean() + fake_score.float().square().mean())


def _cost(change: Tensor, tolerance: float) -> Tensor:
    """|change| where the tolerance is 0."""
    size = change.abs()
    return size if tolerance == 0 else where(size < tolerance, size.square() / (2 * tolerance), size - tolerance / 2)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`, 0 where the mask is empty."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)
