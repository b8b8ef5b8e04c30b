"""What came of the experiment: `utility.json` and `utility.md`, and what it says in words.

A dose is chosen by validation nodules or slices, never by the judged ones; what is said of it is its difference to
the arm with real samples alone. A difference whose interval holds 0 is said to be none that this test can see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation.metrics.bootstrap import Estimate
from evaluation.tables import Column, TableRow, json_rows, markdown_rows, markdown_table
from evaluation.utility.arms import REAL, Arm

__all__ = ["ArmResult", "chosen_line", "sentences", "utility_json", "utility_markdown"]

_SHOWN = {
    "classification": ("balanced_accuracy", "recall, ground_glass", "recall, part_solid", "recall, solid"),
    "segmentation": ("dice", "sensitivity, off the centre", "sensitivity, composites"),
}
_TITLES = {
    "classification": "Classifier of nodules: balanced accuracy over the textures",
    "segmentation": "Segmentation: Dice on crops, sensitivity at one false positive a slice",
}


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """An arm at one number of patients.

    Args:
        experiment: `classification` or `segmentation`.
        patients: of the sub-cohorts.
        arm: what was added.
        added: samples, a mean over the seeds.
        seeds: of the runs.
        validation: mean figure of the chosen states on validation data; None where nothing was chosen.
        figures: with intervals over seeds and patients.
        differences: to the real samples alone.
        own_generator: whether its generated samples come from a generator of these patients alone; None without any.
    """

    experiment: str
    patients: int
    arm: Arm
    added: float
    seeds: tuple[int, ...]
    validation: float | None
    figures: Mapping[str, Estimate]
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    own_generator: bool | None = None


def utility_json(lines: Sequence[ArmResult], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Content of `utility.json` (contract C14)."""
    found: dict[str, Any] = {**facts, "says": sentences(lines)}
    for experiment in _SHOWN:
        own = [line for line in lines if line.experiment == experiment]
        found[experiment] = [_json(line) for line in own]
    return found


def utility_markdown(lines: Sequence[ArmResult], facts: Mapping[str, Any]) -> str:
    """Content of `utility.md`."""
    text = "# Does synthetic data help?\n\n" + "".join(f"- {sentence}\n" for sentence in sentences(lines))
    for experiment, names in _SHOWN.items():
        for patients in sorted({line.patients for line in lines if line.experiment == experiment}):
            own = [line for line in lines if line.experiment == experiment and line.patients == patients]
            text += f"\n## {_TITLES[experiment]}, {patients} real patients\n\n{_table(own, names)}"
            if experiment == "segmentation":
                text += _by_group(own)
    return text + "\n" + "".join(f"{note}\n\n" for note in facts.get("notes", ()))


def sentences(lines: Sequence[ArmResult]) -> list[str]:
    """What each experiment says at each number of patients."""
    found = []
    for experiment, names in _SHOWN.items():
        for patients in sorted({line.patients for line in lines if line.experiment == experiment}):
            own = [line for line in lines if line.experiment == experiment and line.patients == patients]
            chosen = chosen_line(own)
            if chosen is None:
                continue
            for name in names if experiment == "segmentation" else names[:1]:
                found.append(_sentence(experiment, patients, name, chosen, own))
    return found


def chosen_line(lines: Sequence[ArmResult]) -> ArmResult | None:
    """The generated dose with the best validation figure, beside real samples; the smaller one when equal."""
    able = [line for line in lines if line.arm.added == "generated" and line.arm.real and line.validation is not None]
    return max(able, key=lambda line: (line.validation or 0.0, -line.added), default=None)


def _sentence(experiment: str, patients: int, name: str, chosen: ArmResult, lines: Sequence[ArmResult]) -> str:
    text = f"{experiment}, {patients} patients, {name}: {chosen.arm.title} (chosen on validation data) "
    text += _verdict(chosen.differences.get(name))
    same = (chosen.arm.dose, chosen.arm.per_category)
    twins = [x for x in lines if x.arm.added == "copied" and (x.arm.dose, x.arm.per_category) == same]
    for copy in twins:
        text += f"; {copy.arm.title} {_verdict(copy.differences.get(name))}"
    return text + "."


def _verdict(difference: Estimate | None) -> str:
    if difference is None or difference.value is None:
        return "could not be compared"
    if difference.low is None or difference.high is None:
        return f"changes it by {difference.value:+.3f}, without an interval"
    told = f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
    if difference.low > 0:
        return f"helps: {told}"
    return f"harms: {told}" if difference.high < 0 else f"makes no difference that this test can see: {told}"


def _json(line: ArmResult) -> dict[str, Any]:
    columns = [Column(key=name, title=name) for name in line.figures]
    row = json_rows(columns, [TableRow(name=line.arm.name, title=line.arm.title, figures=line.figures)])[0]
    row["arm"] = row.pop("method")
    del row["paper"]
    differences = {
        name: {"value": found.value, "interval": [found.low, found.high]} for name, found in line.differences.items()
    }
    about = {"patients_training": line.patients, "title": line.arm.title, "added_kind": line.arm.added}
    about |= {"dose": line.arm.dose, "per_category": line.arm.per_category, "with_real": line.arm.real}
    about |= {"added": line.added, "seeds": list(line.seeds), "validation": line.validation}
    return {**about, "own_generator": line.own_generator, **row, "difference_to_real": differences}


def _table(lines: Sequence[ArmResult], names: Sequence[str]) -> str:
    columns = [Column(key=name, title=name) for name in names]
    rows = [TableRow(name=line.arm.name, title=line.arm.title, figures=line.figures) for line in lines]
    cells = markdown_rows(columns, rows)
    head = ["training", "added", *names, f"{names[0]}: difference to {REAL.title}", "on validation"]
    body = []
    for line, (title, *figures) in zip(lines, cells, strict=True):
        difference = line.differences.get(names[0])
        validation = "-" if line.validation is None else f"{line.validation:.3f}"
        body.append([title, f"{line.added:,.0f}", *figures, _signed(difference), validation])
    return markdown_table(head, body)


def _by_group(lines: Sequence[ArmResult]) -> str:
    """Dice and sensitivity by category and size."""
    text = ""
    for kind in _SHOWN["segmentation"]:
        names = [name for name in lines[0].figures if name.startswith(f"{kind}, ") and lines[0].figures[name].n]
        rows = [TableRow(name=line.arm.name, title=line.arm.title, figures=line.figures) for line in lines]
        columns = [Column(key=name, title=name.removeprefix(f"{kind}, ")) for name in names]
        head = [kind, *(f"{column.title} (n {lines[0].figures[column.key].n})" for column in columns)]
        text += "\n" + markdown_table(head, markdown_rows(columns, rows))
    return text


def _signed(found: Estimate | None) -> str:
    if found is None or found.value is None:
        return "-"
    text = f"{found.value:+.3f}"
    return text if found.low is None else f"{text} ({found.low:+.3f} to {found.high:+.3f})"
