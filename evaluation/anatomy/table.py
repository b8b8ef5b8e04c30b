"""Anatomy as Markdown and JSON: rows of judged lungs, the judging patients and the floor between patients."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.anatomy.compare import AnatomyJudgement, Range, moments
from evaluation.anatomy.measures import MEASURES
from evaluation.anatomy.reference import AnatomyReference
from evaluation.tables import format_estimate, markdown_table

__all__ = ["FIGURES", "anatomy_json", "anatomy_markdown"]

FIGURES: Mapping[str, str] = {
    "mean_distance": "Mean distance, SD",
    "worst": "Worst, SD",
    "forest": "Two-sample test on anatomy",
    "patches": "on patches of lung",
}
_NONE = "-"


def anatomy_json(reference: AnatomyReference) -> dict[str, Any]:
    """The real side: floor, judging patients, training patients."""
    mean, spread = moments(reference.judging)
    training = reference.training_judgement
    return {
        "n": len(reference.judging),
        "n_patients": reference.judging.n_owners,
        "units": {measure.key: measure.unit for measure in MEASURES},
        "real_mean": mean,
        "real_spread": spread,
        "floor": reference.floor.to_json(),
        "training_patients": None if training is None else training.to_json(),
    }


def anatomy_markdown(rows: Sequence[tuple[str, AnatomyJudgement | None]], reference: AnatomyReference) -> str:
    """Two tables: figures beside their floor, and the means of all measures.

    Args:
        rows: title and judgement; one without is left out.
        reference: the real side.
    """
    judged = [(title, judgement) for title, judgement in rows if judgement is not None]
    floor, judging = reference.floor, reference.judging
    figures = [
        [title, *(_figure(getattr(one, key)) for key in FIGURES), _title(one.worst_measure), str(one.n)]
        for title, one in judged
    ]
    ends = [_range(getattr(floor, key)) for key in FIGURES]
    figures.append([f"*floor: {floor.patients - floor.judges} patients against {floor.judges}*", *ends, _NONE, _NONE])
    mean, spread = moments(judging)
    measures = []
    for measure in MEASURES:
        key, digits = measure.key, measure.digits
        real = f"{format_estimate(mean[key], digits=digits)} ± {format_estimate(spread[key], digits=digits)}"
        cells = [_mean(one, key, digits) for _, one in judged]
        measures.append([measure.title, measure.unit or _NONE, real, *cells])
    head = ["", *FIGURES.values(), "worst measure", "slices"]
    titles = ["Measure", "unit", f"*real: {len(judging)} slices of {judging.n_owners} patients*"]
    return "\n".join(
        (
            markdown_table(head, figures),
            "Floor: mean over draws of patients, and what 95 % of draws stay below.\n",
            markdown_table([*titles, *(title for title, _ in judged)], measures),
            "Means, patients evenly; real ones ± standard deviation of slices; in brackets the distance in it.\n",
        )
    )


def _mean(judgement: AnatomyJudgement, key: str, digits: int) -> str:
    mean, distance = judgement.means[key], judgement.distances[key]
    return _NONE if mean is None else f"{mean:.{digits}f}" + ("" if distance is None else f" ({distance:+.1f})")


def _title(key: str) -> str:
    return next((measure.title for measure in MEASURES if measure.key == key), _NONE)


def _figure(value: float | None) -> str:
    return format_estimate(value, digits=2)


def _range(ends: Range) -> str:
    return f"{_figure(ends.mean)} (up to {_figure(ends.high)})"
