"""What Table III adds to the form of Table II: ratios to the floor, and real whole slices beside composed ones.

The real side is composed, because real whole slices with outlined nodules are few: those of a part, where there are
any, are a second reference. How far the composed held-out slices lie from them says what the first reference is worth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.generation.baselines import MEMORISER
from evaluation.generation.reference import Reference
from evaluation.generation.reference_distances import Group, measure_distances
from evaluation.generation.results import GenerationResult
from evaluation.metrics.bootstrap import Estimate
from evaluation.tables import Column, TableRow, markdown_table, paper_table
from lungsynth.errors import NoSamplesError
from lungsynth.similarity.samples import Samples, read_slices

__all__ = ["WholeSlices", "measure_whole", "table_3_json", "table_3_markdown"]

COMPOSED = "held_out"
_OVER_FLOOR = ("fid", "kid")
_DIGITS = {"fid": 2, "kid": 3, "precision": 2, "recall": 2, "density": 2, "coverage": 2}
_TITLES = {"fid": "FID", "kid": "KID"}


@dataclass(frozen=True, eq=False, kw_only=True)
class WholeSlices:
    """The second reference.

    Args:
        samples: real whole slices with nodules.
        figures: distances to them, by method; `held_out` are the composed ones of the same part.
    """

    samples: Samples
    figures: Mapping[str, Group]


def measure_whole(
    lines: Sequence[GenerationResult], reference: Reference, folder: Path, section: str
) -> WholeSlices | None:
    """Measures all lines against the real whole slices of a part; None where it has none.

    Args:
        lines: of the table.
        reference: the composed slices.
        folder: what `scripts/make_slices.py` wrote.
        section: the judged part.

    Raises:
        InputError: when a file is damaged.
    """
    try:
        samples = read_slices(folder, section, whole=True)
    except NoSamplesError:
        return None
    second = replace(
        reference, held_out=samples, pasted=samples, vectors=reference.features(samples.hu), folds=reference.folds[:0]
    )
    sides = {COMPOSED: reference.held_out} | {line.generator.name: line.matched.samples for line in lines}
    figures = {name: measure_distances(side, reference.features(side.hu), second) for name, side in sides.items()}
    return WholeSlices(samples=samples, figures=figures)


def table_3_json(
    table: Mapping[str, Any], lines: Sequence[GenerationResult], whole: WholeSlices | None
) -> dict[str, Any]:
    """The content of `table_3.json` (contract C15.3), from that of the form of Table II."""
    ratios, figures = _ratios(lines), whole.figures if whole else {}
    rows = [
        {**row, "over_floor": ratios[row["method"]], "diseased": _plain(figures.get(row["method"], {}))}
        for row in table["rows"]
    ]
    owners = set(whole.samples.owners) if whole else set()
    facts = {"n": len(whole.samples) if whole else 0, "n_patients": len(owners)}
    return {**table, "rows": rows, "diseased": {**facts, COMPOSED: _plain(figures.get(COMPOSED, {}))}}


def table_3_markdown(markdown: str, lines: Sequence[GenerationResult], whole: WholeSlices | None) -> str:
    """The content of `table_3.md`: that of the form of Table II, and two sections more."""
    ratios = _ratios(lines)
    cells = [
        [line.generator.title, *(_number(ratios[line.generator.name][key]) for key in _OVER_FLOOR)] for line in lines
    ]
    sections = [
        markdown,
        "## Over the floor\n",
        "How many times the first line's figure; `-` where that is not positive.\n",
        markdown_table(["Method", *(f"{_TITLES[key]} / floor" for key in _OVER_FLOOR)], cells),
    ]
    if whole is not None:
        sections += ["## Against real whole slices with nodules\n", _about(whole), _whole_table(lines, whole)]
    return "\n".join(sections)


def _about(whole: WholeSlices) -> str:
    patients = len(set(whole.samples.owners))
    return (
        f"{len(whole.samples)} slices of {patients} {'patient' if patients == 1 else 'patients'} on which an expert "
        "outlined a nodule, as they are. The line *composed* says how far the reference of the tables above lies from "
        "them. With so few patients this is about these patients, and FID at unequal n is for the order alone.\n"
    )


def _whole_table(lines: Sequence[GenerationResult], whole: WholeSlices) -> str:
    columns = [
        Column(key=key, title=_TITLES.get(key, key.capitalize()), unit="samples", digits=digits)
        for key, digits in _DIGITS.items()
    ]
    titles = {COMPOSED: "*composed, held-out*"} | {line.generator.name: line.generator.title for line in lines}
    rows = [TableRow(name=name, title=title, figures=whole.figures[name]) for name, title in titles.items()]
    return paper_table("Method", columns, rows)


def _ratios(lines: Sequence[GenerationResult]) -> dict[str, dict[str, float | None]]:
    """FID and KID of each line over the memoriser's."""
    floor = next((line.figures.headline for line in lines if line.generator.name == MEMORISER), {})
    return {
        line.generator.name: {key: _over(line.figures.headline.get(key), floor.get(key)) for key in _OVER_FLOOR}
        for line in lines
    }


def _over(figure: Estimate | None, floor: Estimate | None) -> float | None:
    if figure is None or floor is None or figure.value is None or floor.value is None or floor.value <= 0:
        return None
    return figure.value / floor.value


def _plain(group: Group) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in group.items()}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
