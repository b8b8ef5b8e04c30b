"""What is added to the few real samples: the arms of the experiments.

In the classifier's, `x` counts added samples for each real one; in the detector's, a dose is the share of the windows
that have an inserted nodule. All arms of an experiment are trained for the same number of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["REAL", "REAL_WINDOWS", "AddedKind", "Arm", "WindowArm", "classifier_arms", "window_arms"]

AddedKind = Literal["nothing", "generated", "copied"]
Hosts = Literal["own", "generated"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training the classifier.

    Args:
        name: in files and JSON.
        title: in tables.
        added: what is added: generated samples, or real nodules of the same patients composited by the product's
            overlay.
        dose: added samples for each real one.
        per_category: added samples of each category, in place of a dose.
        real: whether the real samples train.
        plain: the reference whose draws follow the real frequencies of the categories.
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


@dataclass(frozen=True, kw_only=True)
class WindowArm:
    """One way of training a detector.

    Args:
        name: in files and JSON.
        title: in tables.
        nodules: kinds of nodules that are inserted, in equal parts.
        hosts: what they are inserted into, in equal parts: windows of the same patients, or of generated lungs.
        dose: share of the windows of a training that have an inserted nodule.
        augment: whether windows are turned, mirrored and changed in level and noise.
    """

    name: str
    title: str
    nodules: tuple[AddedKind, ...] = ()
    hosts: tuple[Hosts, ...] = ("own",)
    dose: float = 0.0
    augment: bool = True

    @property
    def family(self) -> str:
        """Name without the dose: arms of which validation patients choose one."""
        return self.name.partition("@")[0]


REAL = Arm(name="real", title="real only")
REAL_WINDOWS = WindowArm(name="real", title="real only")


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


def window_arms(doses: Sequence[float], families: Sequence[str] | None = None) -> list[WindowArm]:
    """Arms of the detector: controls, and each family at each dose.

    Args:
        doses: shares of windows, above 0.
        families: names of those wanted; all when None.
    """
    kinds: dict[str, tuple[str, tuple[AddedKind, ...], tuple[Hosts, ...]]] = {
        "copied": ("copies in their own lungs", ("copied",), ("own",)),
        "generated": ("generated in their own lungs", ("generated",), ("own",)),
        "copied_and_generated": ("copies and generated in their own lungs", ("copied", "generated"), ("own",)),
        "generated_in_generated": ("generated in generated lungs", ("generated",), ("generated",)),
        "generated_in_both": ("generated in their own and generated lungs", ("generated",), ("own", "generated")),
    }
    unaugmented = WindowArm(name="real_unaugmented", title="real only, without augmentation", augment=False)
    dosed = [
        WindowArm(
            name=f"{name}@{dose:g}", title=f"{title}, {dose:.0%} of windows", nodules=nodules, hosts=hosts, dose=dose
        )
        for name, (title, nodules, hosts) in kinds.items()
        for dose in doses
    ]
    wanted = None if families is None else {REAL_WINDOWS.name, *families}
    return [arm for arm in [REAL_WINDOWS, unaugmented, *dosed] if wanted is None or arm.family in wanted]


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
