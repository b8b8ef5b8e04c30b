"""What is added to the few real samples: the arms of the experiment.

`x` counts added samples for each real one. All arms of an experiment are trained for the same number of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["REAL", "AddedKind", "Arm", "classifier_arms", "segmentation_arms"]

AddedKind = Literal["nothing", "generated", "copied"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training.

    Args:
        name: in files and JSON.
        title: in tables.
        added: what is added: generated samples, or real nodules of the same patients composited by the product's
            overlay.
        dose: added samples for each real one.
        per_category: added samples of each category, in place of a dose.
        real: whether the real samples train.
        plain: the reference without what other arms have: the classifier's draws follow the real frequencies of the
            categories; of the segmentation, its bundle's own composites stand in for added samples.
    """

    name: str
    title: str
    added: AddedKind = "nothing"
    dose: float = 0.0
    per_category: int | None = None
    real: bool = True
    plain: bool = False

    def count(self, real: int, *, categories: int) -> int:
        """Samples to add where there are `real` ones."""
        return round(self.dose * real) if self.per_category is None else self.per_category * categories


REAL = Arm(name="real", title="real only")


def classifier_arms(doses: Sequence[float], *, per_category: int) -> list[Arm]:
    """Arms of the classifier: every dose generated and copied, the paper's number for each category, and controls."""
    arms = [REAL, Arm(name="real_unbalanced", title="real only, categories as frequent as they are", plain=True)]
    for added in ("generated", "copied"):
        arms += [_dosed(added, dose) for dose in doses if dose > 0]
        arms += [_per_category(added, per_category)] if per_category else []
    largest = max(doses, default=0)
    if largest > 0 or per_category:
        base = _per_category("generated", per_category) if per_category else _dosed("generated", largest)
        arms.append(_without_real(base))
    return arms


def segmentation_arms(doses: Sequence[float]) -> list[Arm]:
    """Arms of the segmentation: every dose generated; the largest copied, and generated without real samples."""
    arms = [REAL, *(_dosed("generated", dose) for dose in doses if dose > 0)]
    if (largest := max(doses, default=0)) > 0:
        arms += [_dosed("copied", largest), _without_real(_dosed("generated", largest))]
    bundle = Arm(name="bundle_composites", title="real nodules composited while training (bundle)", plain=True)
    return [*arms, bundle]


def _dosed(added: AddedKind, dose: float) -> Arm:
    return Arm(name=f"{added}_x{dose:g}", title=f"{dose:g}x {added}", added=added, dose=dose)


def _per_category(added: AddedKind, count: int) -> Arm:
    return Arm(name=f"{added}_{count}", title=f"{count} {added} of each category", added=added, per_category=count)


def _without_real(arm: Arm) -> Arm:
    return Arm(
        name=f"only_{arm.name}",
        title=f"{arm.title}, nothing real",
        added=arm.added,
        dose=arm.dose,
        per_category=arm.per_category,
        real=False,
    )
