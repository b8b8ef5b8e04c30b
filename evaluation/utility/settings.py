"""The command line of `scripts/evaluate.py utility`."""

from dataclasses import dataclass
from pathlib import Path

from evaluation.cohort_subsets import Split
from lungsynth.errors import InputError

__all__ = ["EXPERIMENTS", "UtilitySettings"]

EXPERIMENTS = ("classification", "segmentation")


@dataclass(frozen=True, kw_only=True)
class UtilitySettings:
    """What is tried, and where.

    Args:
        cohort: folder written by scripts/prepare.py.
        out: folder of the results; made when absent.
        bundles: folder of the bundles.
        experiments: which of `EXPERIMENTS`.
        patients: training patients of the classifier's sub-cohorts.
        segmentation_patients: of the segmentation's.
        doses: added samples for each real one.
        per_category: added samples a category, the paper's dose; 0 for none. Of the classifier only.
        seeds: sub-cohorts of each size for the classifier.
        segmentation_seeds: for the segmentation.
        steps: of the optimiser, for each classifier.
        segmentation_steps: for each segmentation.
        lung_patients: who lend slices with outlined lungs.
        composites: whole slices that the segmentation is judged on.
        generators: folder with `<sub-cohort>.pt` and `.json`: generators trained on these patients alone. Of the
            classifier only.
        enhance: send synthetic slices through the CycleGAN.
        part: `test`, or `validation` while choosing.
        seed: of the bootstrap and the judged composites.

    Raises:
        InputError: when a number is out of its range.
    """

    cohort: Path
    out: Path
    bundles: Path
    experiments: tuple[str, ...] = EXPERIMENTS
    patients: tuple[int, ...] = (10, 25, 50)
    segmentation_patients: tuple[int, ...] = (25,)
    doses: tuple[float, ...] = (0, 1, 3, 10)
    per_category: int = 200
    seeds: int = 5
    segmentation_seeds: int = 2
    steps: int = 300
    segmentation_steps: int = 300
    lung_patients: int = 2
    composites: int = 150
    generators: Path | None = None
    enhance: bool = True
    part: Split = "test"
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {"seeds": self.seeds, "segmentation-seeds": self.segmentation_seeds, "steps": self.steps}
        numbers |= {"segmentation-steps": self.segmentation_steps, "lung-patients": self.lung_patients}
        numbers |= {"patients": min((*self.patients, *self.segmentation_patients), default=0)}
        for name, value in numbers.items():
            if value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}.")
        if min((*self.doses, self.per_category, self.composites, self.seed), default=0) < 0:
            raise InputError("--doses, --per-category, --composites and --seed must not be negative.")
        if unknown := sorted(set(self.experiments) - set(EXPERIMENTS)):
            raise InputError(f"--experiments: {unknown} are unknown; there are {list(EXPERIMENTS)}.")
