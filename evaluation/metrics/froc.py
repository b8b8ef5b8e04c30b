"""FROC: the share of lesions found against false alarms an image, as the probability asked for falls.

CPM is LUNA16's: the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false alarms an image. The sensitivity at a rate
is the highest that keeps to the rate; nothing is interpolated, so few images promise nothing that no threshold gives.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float64

from evaluation.metrics.bootstrap import Estimate, PatientCounts, estimate, patient_index
from evaluation.metrics.matching import Case

__all__ = ["CPM_RATES", "Froc"]

CPM_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


class Froc:
    """What a detector found in some images, ready to be weighted by patient.

    Args:
        cases: the images. Lesions weigh as often as their own patient is drawn, false alarms and images as often as
            the image's.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        images = sorted({case.patient for case in cases})
        others = sorted({target.patient for case in cases for target in case.targets} - set(images))
        self.groups = [group for group in (images, others) if group]
        everyone = [*images, *others]
        targets = [target for case in cases for target in case.targets]
        scores = np.array([-1.0 if target.score is None else target.score for target in targets])
        order = np.argsort(-scores, kind="stable")
        self.scores = scores[order]
        self._target_owner = patient_index([targets[index].patient for index in order], everyone)
        alarms = [(alarm.probability, case.patient) for case in cases for alarm in case.alarms]
        alarms.sort(key=lambda alarm: -alarm[0])
        self.alarms = np.array([probability for probability, _ in alarms], dtype=np.float64)
        self._alarm_owner = patient_index([patient for _, patient in alarms], everyone)
        self._image_owner = patient_index([case.patient for case in cases], everyone)
        self._n_lesion_patients = len({target.patient for target in targets})
        self._ones = np.ones(len(everyone))

    @property
    def n_targets(self) -> int:
        """Lesions that count."""
        return len(self.scores)

    @property
    def n_images(self) -> int:
        """Images looked at."""
        return len(self._image_owner)

    def sensitivity(self, probability: float, weights: PatientCounts | None = None) -> float:
        """Share of the lesions found at `probability` or more; NaN without lesions."""
        weight = (self._ones if weights is None else weights)[self._target_owner]
        return float(weight[self.scores >= probability].sum() / weight.sum()) if weight.sum() > 0 else float("nan")

    def alarm_rate(self, probability: float, weights: PatientCounts | None = None) -> float:
        """False alarms an image at `probability` or more; NaN without images."""
        known = self._ones if weights is None else weights
        images = known[self._image_owner].sum()
        count = known[self._alarm_owner][self.alarms >= probability].sum()
        return float(count / images) if images > 0 else float("nan")

    def at_rates(self, rates: Sequence[float], weights: PatientCounts | None = None) -> Float64[np.ndarray, " rates"]:
        """The highest sensitivity at no more than each rate of false alarms an image."""
        known = self._ones if weights is None else weights
        images, weight = known[self._image_owner].sum(), known[self._target_owner]
        if images <= 0 or weight.sum() <= 0:
            return np.full(len(rates), np.nan)
        found = np.concatenate([[0.0], np.cumsum(weight)]) / weight.sum()
        limits = self._limits(np.cumsum(known[self._alarm_owner]), np.asarray(rates) * images)
        above = np.searchsorted(-self.scores, -limits, side="left")  # scores above the first alarm that is too many
        return found[above]

    def threshold_at(self, rate: float) -> float:
        """The lowest probability at which no more than `rate` false alarms an image are left.

        Above 1 where there are more at any: then nothing can be found at that rate.
        """
        limit = self._limits(np.arange(1.0, len(self.alarms) + 1), np.array([rate * self.n_images]))[0]
        return float(np.nextafter(limit, np.inf)) if limit > 0 else 0.0

    def curve(self) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        """(false alarms an image, sensitivity) at each threshold, from the strictest on."""
        levels = np.unique(np.concatenate([self.scores[self.scores >= 0], self.alarms]))[::-1]
        rates = np.searchsorted(-self.alarms, -levels, side="right") / max(self.n_images, 1)
        found = np.searchsorted(-self.scores, -levels, side="right") / max(self.n_targets, 1)
        return np.concatenate([[0.0], rates]), np.concatenate([[0.0], found])

    def estimates(self, operating_point: float, *, seed: int) -> dict[str, Estimate]:
        """`sensitivity` and `alarms` an image at the operating point, `at_one` (sensitivity at one alarm), `cpm`."""

        def statistic(weights: PatientCounts) -> list[float]:
            at = self.at_rates(CPM_RATES, weights)
            one = float(at[CPM_RATES.index(1.0)])
            point = self.sensitivity(operating_point, weights), self.alarm_rate(operating_point, weights)
            return [*point, one, float(at.mean())]

        counts = [self.n_targets, self.n_images, self.n_targets, self.n_targets]
        found = estimate(self.groups, statistic, n=counts, seed=seed)
        names = ("sensitivity", "alarms", "at_one", "cpm")
        owners = [self._n_lesion_patients, len(set(self._image_owner)), *[self._n_lesion_patients] * 2]
        return {
            name: replace(figure, patients=patients)
            for name, figure, patients in zip(names, found, owners, strict=True)
        }

    def _limits(self, cumulated: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Probability of the first alarm that is one too many; below all scores where none is."""
        first = np.searchsorted(cumulated, allowed + 1e-9, side="right")
        return np.append(self.alarms, -0.5)[first]
