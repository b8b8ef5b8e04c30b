"""The real side of anatomy: the judging patients, the training patients, and the floor between patients."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from evaluation.anatomy.compare import AnatomyFloor, AnatomyJudgement, anatomy_floor, judge_anatomy
from evaluation.anatomy.lungs import at_full_resolution, read_native_lungs
from evaluation.anatomy.measures import AnatomySet, measure_lungs
from lungsynth.errors import InputError
from lungsynth.similarity.samples import Samples

__all__ = ["JUDGED_SLICES", "AnatomyReference", "read_anatomy_reference"]

JUDGED_SLICES = 64  # of a method: with more, only the patients' own spread is left
_FEWEST_JUDGES = 2

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class AnatomyReference:
    """The real side; made by `read_anatomy_reference`.

    Args:
        judging: slices of the judging patients, at 0.7 mm.
        training: those of the training patients; None where none is fine enough.
        floor: of as many judges among all of them.
        seed: of folds and forests.
    """

    judging: AnatomySet
    training: AnatomySet | None
    floor: AnatomyFloor
    seed: int

    def judge(self, samples: Samples) -> AnatomyJudgement:
        """Judges lungs on any grid, at most 64 of them, evenly spread over their order."""
        count = min(len(samples), JUDGED_SLICES)
        chosen = samples.take(np.linspace(0, len(samples) - 1, count).round().astype(np.int64))
        measured = measure_lungs(at_full_resolution(chosen), seed=self.seed)
        return judge_anatomy(measured, self.judging, further=self.training, seed=self.seed)

    @cached_property
    def training_judgement(self) -> AnatomyJudgement | None:
        """The training patients as if they were generated: what a perfect generator reaches."""
        if self.training is None or self.training.n_owners < _FEWEST_JUDGES:
            return None
        return judge_anatomy(self.training, self.judging, seed=self.seed)


def read_anatomy_reference(cohort: Path, judging: Sequence[str], *, seed: int) -> AnatomyReference:
    """Reads and measures the real side.

    Args:
        cohort: what `lungsynth prepare` wrote, with lungs of any size.
        judging: splits whose patients judge; none of them is `training`.
        seed: of everything random.

    Raises:
        InputError: when fewer than two judging patients, or four in all, have slices at full resolution.
    """
    held_out = measure_lungs(read_native_lungs(cohort, judging), seed=seed)
    if held_out.n_owners < _FEWEST_JUDGES:
        raise InputError(
            f"{cohort}: {held_out.n_owners} patient of its {' and '.join(judging)} split has slices at full "
            f"resolution; anatomy needs {_FEWEST_JUDGES} or more."
        )
    try:
        training = measure_lungs(read_native_lungs(cohort, ("training",)), seed=seed)
    except InputError as error:
        _logger.warning("two-sample tests train on the judging patients alone: %s", error)
        training = None
    everybody = held_out if training is None else held_out.join(training)
    floor = anatomy_floor(everybody, judges=held_out.n_owners, seed=seed)
    return AnatomyReference(judging=held_out, training=training, floor=floor, seed=seed)
