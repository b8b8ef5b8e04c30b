"""From runs to lines of the report: the runs of one arm and one number of patients are one line."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from evaluation.utility import classification, segmentation
from evaluation.utility.arms import REAL, Arm
from evaluation.utility.estimates import Table, compare
from evaluation.utility.report import ArmResult
from evaluation.utility.subcohort import SubCohort

__all__ = ["ArmRun", "results_of"]

_SHARES = {"classification": classification.SHARES, "segmentation": segmentation.SHARES}


@dataclass(frozen=True, eq=False)
class ArmRun:
    """A run.

    Args:
        cohort: of few patients.
        arm: what was added.
        table: what it did on the judged patients.
        added: samples.
        validation: what chose its state; None where nothing was chosen.
        own_generator: whether the generator was trained on these patients alone; None where nothing is generated.
    """

    cohort: SubCohort
    arm: Arm
    table: Table
    added: int
    validation: float | None
    own_generator: bool | None


def results_of(experiment: str, runs: Sequence[ArmRun], *, seed: int) -> list[ArmResult]:
    """Figures of each arm at each number of patients, in the order in which they ran."""
    groups: dict[tuple[int, Arm], list[ArmRun]] = {}
    for run in runs:
        groups.setdefault((run.cohort.patients, run.arm), []).append(run)
    lines = []
    for (patients, arm), own in groups.items():
        reference = {run.cohort.seed: run.table for run in groups.get((patients, REAL), ())}
        figures, differences = compare(
            {run.cohort.seed: run.table for run in own}, reference, _SHARES[experiment], seed=seed
        )
        known = [run.validation for run in own if run.validation is not None]
        generators = {run.own_generator for run in own}
        lines.append(
            ArmResult(
                experiment=experiment,
                patients=patients,
                arm=arm,
                added=fmean(run.added for run in own),
                seeds=tuple(run.cohort.seed for run in own),
                validation=fmean(known) if known else None,
                figures=figures,
                differences={} if arm == REAL else differences,
                own_generator=None if generators == {None} else all(generators),
            )
        )
    return lines
