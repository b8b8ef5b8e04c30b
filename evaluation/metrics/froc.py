"""FROC: the share of lesions that are found against false positives per image, as the probability threshold falls.

CPM is LUNA16's: the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image. The sensitivity at a
rate is the highest that keeps to the rate; nothing is interpolated, so that few images promise nothing that no
threshold gives.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Float64

from evaluation.metrics.bootstrap import Estimates, PatientCounts, estimate, patient_index
from evaluation.metrics.matching import Case

__all__ = ["CPM_RATES", "Froc"]

CPM_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per image (LUNA16)
_NOT_FOUND = -1.0  # score of a lesion without a hit: below every threshold


class Froc:
    """The lesions and false positives of some images, sorted by score, ready to be weighted by patient.

    Args:
        cases: the images. Lesions weigh as often as their own patient is drawn, false positives and images as often
            as the image's.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        nodules = [nodule for case in cases for nodule in case.nodules]
        image_patients = sorted({case.patient for case in cases})
        lesion_patients = sorted({nodule.patient for nodule in nodules})
        others = sorted(set(lesion_patients) - set(image_patients))
        patients = [*image_patients, *others]
        self.groups = [group for group in (image_patients, others) if group]
        self._n_lesion_patients = len(lesion_patients)
        self._ones = np.ones(len(patients))
        self._image_owner = patient_index([case.patient for case in cases], patients)
        scores = [_NOT_FOUND if nodule.score is None else nodule.score for nodule in nodules]
        self.scores, self._lesion_owner = _sorted_scores(scores, [nodule.patient for nodule in nodules], patients)
        false = [(item.probability, case.patient) for case in cases for item in case.false_positives]
        self.false_positive_scores, self._false_positive_owner = _sorted_scores(
            [probability for probability, _ in false], [patient for _, patient in false], patients
        )

    @property
    def n_lesions(self) -> int:
        """Lesions that count."""
        return len(self.scores)

    @property
    def n_images(self) -> int:
        """Images that the detector ran on."""
        return len(self._image_owner)

    def sensitivity(self, probability: float, counts: PatientCounts | None = None) -> float:
        """Share of the lesions found at `probability` or more; NaN without lesions."""
        weight = self._counts(counts)[self._lesion_owner]
        return float(weight[self.scores >= probability].sum() / weight.sum()) if weight.sum() > 0 else float("nan")

    def false_positives(self, probability: float, counts: PatientCounts | None = None) -> float:
        """False positives per image at `probability` or more; NaN without images."""
        drawn = self._counts(counts)
        images = drawn[self._image_owner].sum()
        number = drawn[self._false_positive_owner][self.false_positive_scores >= probability].sum()
        return float(number / images) if images > 0 else float("nan")

    def sensitivity_at(
        self, rates: Sequence[float], counts: PatientCounts | None = None
    ) -> Float64[np.ndarray, " rates"]:
        """The highest sensitivity at no more than each rate of false positives per image."""
        drawn = self._counts(counts)
        images, weight = drawn[self._image_owner].sum(), drawn[self._lesion_owner]
        if images <= 0 or weight.sum() <= 0:
            return np.full(len(rates), np.nan)
        sensitivities = np.concatenate([[0.0], np.cumsum(weight)]) / weight.sum()
        limits = self._limits(np.cumsum(drawn[self._false_positive_owner]), np.asarray(rates) * images)
        n_above = np.searchsorted(-self.scores, -limits, side="left")  # lesions above the first one too many
        return sensitivities[n_above]

    def threshold_at(self, rate: float) -> float:
        """The lowest probability at which no more than `rate` false positives per image are left.

        Above 1 where there are more at any probability: then nothing can be found at that rate.
        """
        numbers = np.arange(1.0, len(self.false_positive_scores) + 1)
        limit = self._limits(numbers, np.array([rate * self.n_images]))[0]
        return float(np.nextafter(limit, np.inf)) if limit > 0 else 0.0

    def curve(self) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
        """(false positives per image, sensitivity) at each threshold, from the strictest on."""
        levels = np.unique(np.concatenate([self.scores[self.scores >= 0], self.false_positive_scores]))[::-1]
        rates = np.searchsorted(-self.false_positive_scores, -levels, side="right") / max(self.n_images, 1)
        sensitivities = np.searchsorted(-self.scores, -levels, side="right") / max(self.n_lesions, 1)
        return np.concatenate([[0.0], rates]), np.concatenate([[0.0], sensitivities])

    def estimates(self, operating_point: float, *, seed: int) -> Estimates:
        """`sensitivity` and `false_positives` per image at the operating point, `sensitivity_at_1` and `cpm`."""

        def statistic(counts: PatientCounts) -> list[float]:
            at_rates = self.sensitivity_at(CPM_RATES, counts)
            at_one = float(at_rates[CPM_RATES.index(1.0)])
            at_point = self.sensitivity(operating_point, counts), self.false_positives(operating_point, counts)
            return [*at_point, at_one, float(at_rates.mean())]

        n = [self.n_lesions, self.n_images, self.n_lesions, self.n_lesions]
        names = ("sensitivity", "false_positives", "sensitivity_at_1", "cpm")
        patients = [self._n_lesion_patients, len(set(self._image_owner)), *[self._n_lesion_patients] * 2]
        figures = estimate(self.groups, statistic, n=n, seed=seed)
        return {
            name: replace(figure, patients=number)
            for name, figure, number in zip(names, figures, patients, strict=True)
        }

    def _counts(self, counts: PatientCounts | None) -> PatientCounts:
        return self._ones if counts is None else counts

    def _limits(self, cumulated: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Probability of the first false positive that is one too many; below all scores where none is."""
        first = np.searchsorted(cumulated, allowed + 1e-9, side="right")
        return np.append(self.false_positive_scores, _NOT_FOUND / 2)[first]


def _sorted_scores(
    scores: Sequence[float], owners: Sequence[str], patients: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores, highest first, and the position of their owners among the patients."""
    values = np.array(scores, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    return values[order], patient_index(owners, patients)[order]
