"""The classifier's part of the report, and what it says in words.

The runs of one arm at one number of patients are one row. A dose is chosen by validation nodules, never by the
evaluated ones; what is said of it is its difference to the arm with real samples alone. A difference whose interval
contains 0 is said to be none that this test can see.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.metrics.bootstrap import RESAMPLES, Estimate, Estimates
from evaluation.plots import plot_file
from evaluation.tables import Column, TableRow, json_rows, markdown_rows, markdown_table
from evaluation.utility.arms import REAL, Arm
from evaluation.utility.classification import SHARES
from evaluation.utility.estimates import PatientTable, compare
from evaluation.utility.subcohort import CATEGORIES, SubCohort

__all__ = [
    "ArmResult",
    "ArmRun",
    "arm_results",
    "best_dose",
    "main_figure",
    "notes",
    "save_plot",
    "sentences",
    "utility_json",
    "utility_markdown",
]

_MAIN = "balanced_accuracy"
_SHOWN = (_MAIN, "recall, ground_glass", "recall, part_solid", "recall, solid")
_TITLE = "Classifier of nodules: balanced accuracy over the textures"
_PANEL_WIDTH = 0.8  # share of the space between two arms, for the numbers of patients beside one another


@dataclass(frozen=True, eq=False, kw_only=True)
class ArmRun:
    """A run.

    Args:
        cohort: of few patients.
        arm: what was added.
        table: what it did on the evaluated patients.
        added: samples.
        validation: what chose its state; None where nothing was chosen.
        own_generator: whether the generator was trained on these patients alone; None where nothing is generated.
    """

    cohort: SubCohort
    arm: Arm
    table: PatientTable
    added: int
    validation: float | None
    own_generator: bool | None


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """An arm at one number of patients.

    Args:
        patients: of the sub-cohorts.
        arm: what was added.
        added: samples, a mean over the seeds.
        seeds: of the runs.
        validation: mean figure of the chosen states on validation data; None where nothing was chosen.
        figures: with intervals over seeds and patients.
        differences: to the real samples alone.
        own_generator: whether its generated samples come from a generator of these patients alone; None without any.
    """

    patients: int
    arm: Arm
    added: float
    seeds: tuple[int, ...]
    validation: float | None
    figures: Estimates
    differences: Estimates = field(default_factory=dict)
    own_generator: bool | None = None

    @property
    def row(self) -> TableRow:
        """Of a table."""
        return TableRow(name=self.arm.name, title=self.arm.title, figures=dict(self.figures))


def arm_results(runs: Sequence[ArmRun], *, seed: int, resamples: int = RESAMPLES) -> list[ArmResult]:
    """Figures of each arm at each number of patients, in the order in which they ran.

    Args:
        runs: all of them.
        seed: of the bootstrap.
        resamples: of it.
    """
    groups: dict[tuple[int, Arm], list[ArmRun]] = {}
    for run in runs:
        groups.setdefault((run.cohort.patients, run.arm), []).append(run)
    return [
        _arm_result(own, groups.get((patients, REAL), []), seed=seed, resamples=resamples)
        for (patients, _), own in groups.items()
    ]


def main_figure(result: ArmResult) -> float | None:
    """Balanced accuracy."""
    return result.figures[_MAIN].value


def _arm_result(runs: Sequence[ArmRun], real: Sequence[ArmRun], **settings: int) -> ArmResult:
    tables, reference = ({run.cohort.seed: run.table for run in side} for side in (runs, real))
    figures, differences = compare(tables, reference, SHARES, **settings)
    scores = [run.validation for run in runs if run.validation is not None]
    own_generator = {run.own_generator for run in runs}
    arm = runs[0].arm
    return ArmResult(
        patients=runs[0].cohort.patients,
        arm=arm,
        added=fmean(run.added for run in runs),
        seeds=tuple(run.cohort.seed for run in runs),
        validation=fmean(scores) if scores else None,
        figures=figures,
        differences={} if arm == REAL else differences,
        own_generator=None if own_generator == {None} else all(own_generator),
    )


def utility_json(results: Sequence[ArmResult], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `utility.json` says of the classifier."""
    return {**facts, "says": sentences(results), "classification": [_json(result) for result in results]}


def utility_markdown(results: Sequence[ArmResult], facts: Mapping[str, Any]) -> str:
    """The classifier's part of `utility.md`."""
    text = f"# {_TITLE}\n\n" + "".join(f"- {sentence}\n" for sentence in sentences(results))
    for patients, own in _groups(results):
        text += f"\n## {patients} real patients\n\n{_table(own)}"
    return text + "\n" + "".join(f"{note}\n\n" for note in facts.get("notes", ()))


def sentences(results: Sequence[ArmResult]) -> list[str]:
    """What the experiment says at each number of patients."""
    lines = []
    for patients, own in _groups(results):
        if (best := best_dose(own)) is not None:
            lines.append(f"classification, {patients} patients, {_MAIN}: {_sentence(_MAIN, best, own)}.")
    return lines


def best_dose(results: Sequence[ArmResult]) -> ArmResult | None:
    """The generated dose with the best validation figure, beside real samples; the smaller one when equal."""
    doses = [
        result
        for result in results
        if result.arm.added == "generated" and result.arm.real and result.validation is not None
    ]
    return max(doses, key=lambda result: (result.validation or 0.0, -result.added), default=None)


def _groups(results: Sequence[ArmResult]) -> Iterable[tuple[int, list[ArmResult]]]:
    """Results by number of patients."""
    for patients in sorted({result.patients for result in results}):
        yield patients, [result for result in results if result.patients == patients]


def _sentence(name: str, best: ArmResult, results: Sequence[ArmResult]) -> str:
    text = f"{best.arm.title} (chosen on validation data) {_effect(best.differences.get(name))}"
    dose = (best.arm.dose, best.arm.per_category)
    for result in results:
        if result.arm.added == "copied" and (result.arm.dose, result.arm.per_category) == dose:
            text += f"; {result.arm.title} {_effect(result.differences.get(name))}"
    return text


def _effect(difference: Estimate | None) -> str:
    if difference is None or difference.value is None:
        return "could not be compared"
    if difference.low is None or difference.high is None:
        return f"changes it by {difference.value:+.3f}, without an interval"
    interval = f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
    if difference.low > 0:
        return f"helps: {interval}"
    return f"harms: {interval}" if difference.high < 0 else f"makes no difference that this test can see: {interval}"


def _json(result: ArmResult) -> dict[str, Any]:
    row = json_rows([Column(key=name, title=name) for name in result.figures], [result.row])[0]
    row["arm"] = row.pop("method")
    del row["paper"]
    return {
        "patients_training": result.patients,
        "title": result.arm.title,
        "added_kind": result.arm.added,
        "dose": result.arm.dose,
        "per_category": result.arm.per_category,
        "with_real": result.arm.real,
        "added": result.added,
        "seeds": list(result.seeds),
        "validation": result.validation,
        "own_generator": result.own_generator,
        **row,
        "difference_to_real": {
            name: {"value": figure.value, "interval": [figure.low, figure.high]}
            for name, figure in result.differences.items()
        },
    }


def _table(results: Sequence[ArmResult]) -> str:
    cells = markdown_rows([Column(key=name, title=name) for name in _SHOWN], [result.row for result in results])
    head = ["training", "added", *_SHOWN, f"{_MAIN}: difference to {REAL.title}", "on validation"]
    lines = []
    for result, (title, *figures) in zip(results, cells, strict=True):
        validation = "-" if result.validation is None else f"{result.validation:.3f}"
        difference = _signed(result.differences.get(_MAIN))
        lines.append([title, f"{result.added:,.0f}", *figures, difference, validation])
    return markdown_table(head, lines)


def _signed(figure: Estimate | None) -> str:
    if figure is None or figure.value is None:
        return "-"
    text = f"{figure.value:+.3f}"
    return text if figure.low is None else f"{text} ({figure.low:+.3f} to {figure.high:+.3f})"


# The plot


def save_plot(results: Sequence[ArmResult], path: Path) -> Path:
    """Writes a PNG: a place for each arm, a colour for each number of patients."""
    with plot_file(path, columns=1, panel_inches=(6, 5)) as all_axes:
        _draw_panel(all_axes[0], results, _MAIN, _TITLE)
    return path


def _draw_panel(axes: Any, results: Sequence[ArmResult], name: str, title: str) -> None:
    arms = list(dict.fromkeys(result.arm for result in results))
    numbers = sorted({result.patients for result in results})
    for result in results:
        figure, index = result.figures.get(name), numbers.index(result.patients)
        if figure is None or figure.value is None:
            continue
        shift = _PANEL_WIDTH * ((index + 0.5) / len(numbers) - 0.5)
        low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
        bars = [[max(0.0, figure.value - low)], [max(0.0, high - figure.value)]]
        label = f"{result.patients} patients" if result.arm == arms[0] else None
        style = {"color": f"C{index}", "fmt": "o", "capsize": 2, "label": label}
        axes.errorbar([arms.index(result.arm) + shift], [figure.value], yerr=bars, **style)
    axes.set_xticks(range(len(arms)), [arm.name.replace("_", " ") for arm in arms], rotation=60, ha="right")
    axes.set(title=title)
    axes.grid(alpha=0.3, axis="y")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


# Notes

_GENERATOR_NOTES = {
    frozenset({False}): (
        "**Generator.** The generated samples come from weights that were trained on other patients than these few "
        "(the weights' split is not that of the sub-cohorts). Their figures are those of a user who takes a generator "
        "that has seen many patients, not of one who trains it on the few. Validation and evaluated patients trained "
        "it only if its split is another one than this cohort's: compare `generator.split_hash` with `split_hash`."
    ),
    frozenset({True}): "**Generator.** Trained on the patients of each sub-cohort alone, as `own_generator` of a row "
    "says.",
    frozenset({True, False}): "**Generator.** Some rows have a generator trained on their patients alone "
    "(`own_generator`), others not.",
}


def notes(steps: int, results: Sequence[ArmResult], cohorts: Iterable[SubCohort]) -> list[str]:
    """What a reader must know beside the figures: budgets, what was seen by whom, and what the figures do not say.

    Args:
        steps: of each classifier.
        results: of the report.
        cohorts: that trained.
    """
    if not results:
        return []
    paragraphs = [_about_real_data(list(cohorts))]
    own = frozenset(result.own_generator for result in results if result.own_generator is not None)
    paragraphs += [_GENERATOR_NOTES[own]] if own else []
    paragraphs.append(
        f"**Classifier.** {steps} steps for every arm, categories drawn evenly but where a row says otherwise. It "
        "sees isolated nodules (`hu` of 64 x 64 pixels at 0.7 mm, without vessels or pleura), as the generator "
        "makes them: this is no test on whole slices. *No network* is the nearest of the categories' medians of "
        "mean HU, and uses the readers' outline, which the networks do not."
    )
    paragraphs.append(
        "**Intervals** are 95 % percentiles over seeds and evaluated patients, both resampled; a seed is another "
        "choice of patients, another start and other added samples. With two or three seeds they are a rough guess."
    )
    return paragraphs


def _about_real_data(cohorts: Sequence[SubCohort]) -> str:
    texts = []
    for patients in sorted({cohort.patients for cohort in cohorts}):
        own = [cohort for cohort in cohorts if cohort.patients == patients]
        counts = ", ".join(f"{_range([cohort.nodules.get(name, 0) for cohort in own])} {name}" for name in CATEGORIES)
        texts.append(f"{patients} patients have {counts}")
    return (
        f"**Real data.** {'; '.join(texts)} nodules. Patients are drawn at random, but so that each category has one."
    )


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"
