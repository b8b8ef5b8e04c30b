"""Table II as JSON and as Markdown: the comparison of generators. `table_3` adds to it what whole slices need."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from evaluation.cohort_subsets import Subset
from evaluation.generation.baselines import MEMORISER
from evaluation.generation.by_group import FEWEST, FEWEST_PATIENTS
from evaluation.generation.ct_checks import UNITS
from evaluation.generation.figures import GeneratorFigures
from evaluation.generation.reference import Reference
from evaluation.generation.reference_distances import Group
from evaluation.generation.results import GenerationResult
from evaluation.generation.table_2_notes import notes
from evaluation.metrics.bootstrap import Estimate
from evaluation.paper import TABLE_2, TABLE_3
from evaluation.segmentation.figures import SIZES_MM
from evaluation.tables import Column, TableRow, format_estimate, json_rows, markdown_table, paper_table
from lungsynth.similarity.samples import SampleKind

__all__ = ["COLUMNS", "PAPER", "table_2_json", "table_2_markdown"]

COLUMNS = (
    Column(key="fid", title="FID", unit="samples", digits=2, in_paper=True),
    Column(key="kid", title="KID", unit="samples"),
    Column(key="inception_score", title="Inception Score", unit="samples", digits=2, in_paper=True),
    Column(key="precision", title="Precision", unit="samples", digits=2),
    Column(key="recall", title="Recall", unit="samples", digits=2),
    Column(key="density", title="Density", unit="samples", digits=2),
    Column(key="coverage", title="Coverage", unit="samples", digits=2),
    Column(key="ms_ssim", title="MS-SSIM", unit="pairs"),
    Column(key="c2st", title="Two-sample test", unit="samples"),
    Column(key="copies", title="Copies", digits=0),
)
_MORE = (
    Column(key="c2st_features", title="Two-sample test, on features", unit="samples"),
    Column(key="c2st_patch", title="on patches as made", unit="samples"),
    Column(key="copy_share", title="Copies, share", unit="samples"),
    Column(key="diameter_within", title="Diameter within 1.5 mm", unit="samples", digits=2),
    Column(key="diameter_error_mm", title="Error, mm", unit="samples", digits=2),
    Column(key="diameter_bias_mm", title="Bias, mm", unit="samples", digits=2),
    Column(key="texture_agreement", title="Texture as asked", unit="samples", digits=2),
    Column(key="texture_ratio", title="over real nodules'", unit="samples", digits=2),
    Column(key="parameters", title="Parameters", digits=0),
    Column(key="train_minutes", title="Training, minutes", digits=0),
)
_LIKENESS = (
    Column(key="fid", title="FID", unit="samples", digits=2),
    Column(key="kid", title="KID", unit="samples"),
    Column(key="c2st", title="Two-sample test", unit="samples"),
    Column(key="c2st_features", title="on features", unit="samples"),
    Column(key="c2st_patch", title="on patches as made", unit="samples"),
)
_ASKED = (
    Column(key="diameter_within", title="Diameter within 1.5 mm", unit="samples", digits=2),
    Column(key="diameter_bias_mm", title="Bias, mm", unit="samples", digits=2),
    Column(key="texture_agreement", title="Texture as asked", unit="samples", digits=2),
    Column(key="texture_real", title="Texture as labelled, held-out ones", unit="samples", digits=2),
)
REAL = "real"
PAPER: Mapping[SampleKind, Mapping[str, Mapping[str, float]]] = {"nodules": TABLE_2, "lungs": {}, "slices": TABLE_3}
_HEADS: Mapping[SampleKind, str] = {
    "nodules": "Table II: generators of nodules",
    "lungs": "Table II: generators of lungs",
    "slices": "Table III: generators of whole diseased slices",
}
FLOOR = ("fid", "kid", "c2st", "c2st_features", "c2st_patch")


def table_2_json(
    part: Subset,
    reference: Reference,
    lines: Sequence[GenerationResult],
    real: GeneratorFigures,
    *,
    count: int,
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """The content of `table_2.json` (contract C12.1).

    Args:
        part: who was judged on.
        reference: the real side.
        lines: baselines first.
        real: figures of the held-out samples alone.
        count: samples a category of the balanced set.
        left_out: methods without figures, and why.
    """
    plain = json_rows((*_columns(reference.kind), *_MORE), _rows(lines, reference.kind))
    rows = [{**row, **_extras(line)} for row, line in zip(plain, lines, strict=True)]
    floor = next((line.figures for line in lines if line.generator.name == MEMORISER), GeneratorFigures())
    return {
        "kind": reference.kind,
        "n": len(reference.held_out),
        "n_patients": len(set(reference.held_out.owners)),
        "n_per_category": dict(sorted(Counter(reference.held_out.categories).items())),
        "n_training": len(reference.training),
        "count": count,
        "part": part.part,
        "split_hash": part.split_hash,
        "features": reference.features.name,
        "features_identity": reference.features.identity,
        "floor": {name: _value(floor.headline.get(name)) for name in FLOOR},
        "real": {
            **{name: asdict(figure) for name, figure in real.headline.items()},
            "copies": real.copies,
        },
        "copy_threshold": asdict(reference.threshold),
        "rows": rows,
        "left_out": dict(left_out),
    }


def table_2_markdown(
    part: Subset,
    reference: Reference,
    lines: Sequence[GenerationResult],
    real: GeneratorFigures,
    *,
    count: int,
    left_out: Mapping[str, str],
) -> str:
    """The content of `table_2.md`; the arguments are those of `table_2_json`."""
    last = TableRow(name=REAL, title=f"*held-out {reference.kind}*", figures={**real.headline, "copies": real.copies})
    rows = [*_rows(lines, reference.kind), last]
    patients = len(set(reference.held_out.owners))
    sections = [
        f"# {_HEADS[reference.kind]}\n",
        f"{len(reference.held_out)} {reference.kind} of {patients} patients of the {part.part} part, features: "
        f"{reference.features.name}. 95 % intervals. `-`: no such figure. What each figure means stands in "
        "docs/evaluation.md.\n",
        paper_table("Method", _columns(reference.kind), rows),
        *notes(part, reference, [line.generator for line in lines], left_out, count=count),
        "## More\n",
        paper_table("Method", [c for c in _MORE if any(row.figures.get(c.key) is not None for row in rows)], rows),
        "## FID by n\n",
        "Means over random subsets. The bias alone makes FID fall with n: compare at equal n only.\n",
        _by_n(lines),
        *_group_sections(lines),
        "## CT checks\n",
        "Wasserstein distance of each measurement's distribution to that of the held-out ones; in brackets, times the "
        "floor.\n",
        _checks(lines),
    ]
    return "\n".join(section for section in sections if section)


def _columns(kind: SampleKind) -> tuple[Column, ...]:
    """The paper has no such table of lungs."""
    return COLUMNS if PAPER[kind] else tuple(replace(column, in_paper=False) for column in COLUMNS)


def _rows(lines: Sequence[GenerationResult], kind: SampleKind) -> list[TableRow]:
    return [
        TableRow(
            name=line.generator.name,
            title=line.generator.title,
            figures={
                **line.figures.headline,
                "copies": line.figures.copies,
                "parameters": line.generator.parameters,
                "train_minutes": line.generator.train_minutes,
            },
            paper=PAPER[kind].get(line.generator.name, {}),
        )
        for line in lines
    ]


def _extras(line: GenerationResult) -> dict[str, Any]:
    """What stands in a row of the JSON beside the table's columns."""
    figures = line.figures
    return {
        "title": line.generator.title,
        "training": line.generator.relation,
        "fid_by_n": {str(n): value for n, value in figures.fid_by_n.items()},
        "checks": {name: asdict(figure) for name, figure in figures.checks.items()},
        **{
            name: {group: {key: asdict(figure) for key, figure in found.items()} for group, found in groups.items()}
            for name, groups in (("by_category", figures.by_category), ("by_size", figures.by_size))
        },
    }


def _by_n(lines: Sequence[GenerationResult]) -> str:
    sizes = sorted({n for line in lines for n in line.figures.fid_by_n})
    rows = []
    for line in lines:
        rows.append([line.generator.title, *(format_estimate(line.figures.fid_by_n.get(n), digits=2) for n in sizes)])
    return markdown_table(["Method", *(f"n = {n}" for n in sizes)], rows) if sizes else ""


def _group_sections(lines: Sequence[GenerationResult]) -> list[str]:
    """A table a category, and a table a size."""
    categories = sorted({name for line in lines for name in line.figures.by_category})
    sizes = [name for name in SIZES_MM if any(name in line.figures.by_size for line in lines)]
    found = []
    if categories:
        found.append(
            f"## By category\n\nDistances and two-sample tests from {FEWEST} samples and {FEWEST_PATIENTS} held-out "
            "patients of a category on; compare with the floor of the same category, at its own n. The two-sample "
            "tests are those of all categories, asked about this one.\n"
        )
    for name in categories:
        groups = [line.figures.by_category.get(name, {}) for line in lines]
        found += [f"### {name}\n", _group_table(lines, groups, (*_LIKENESS, *_ASKED))]
    if sizes:
        found.append("## By the diameter asked for\n\nMatched and balanced set together.\n")
    for name in sizes:
        groups = [line.figures.by_size.get(name, {}) for line in lines]
        found += [f"### {name}\n", _group_table(lines, groups, _ASKED)]
    return found


def _group_table(lines: Sequence[GenerationResult], groups: Sequence[Group], columns: Sequence[Column]) -> str:
    """Lines that have a figure of the group, in columns that have one."""
    rows = [
        TableRow(name=line.generator.name, title=line.generator.title, figures=group)
        for line, group in zip(lines, groups, strict=True)
        if group
    ]
    return paper_table("Method", [c for c in columns if any(c.key in row.figures for row in rows)], rows)


def _checks(lines: Sequence[GenerationResult]) -> str:
    names = list(dict.fromkeys(name for line in lines for name in line.figures.checks))
    floor = next((line.figures.checks for line in lines if line.generator.name == MEMORISER), {})
    rows = []
    for name in names:
        unit = "HU" if name.startswith("hu_") else UNITS.get(name, "-")
        cells = [_against_floor(line.figures.checks.get(name), floor.get(name)) for line in lines]
        rows.append([name, unit, *cells])
    return markdown_table(["Check", "unit", *(line.generator.title for line in lines)], rows) if names else ""


def _against_floor(figure: Estimate | None, floor: Estimate | None) -> str:
    if figure is None or figure.value is None:
        return "-"
    text = f"{figure.value:.3g}"
    return f"{text} ({figure.value / floor.value:.1f})" if floor is not None and floor.value else text


def _value(figure: Estimate | None) -> float | None:
    return None if figure is None else figure.value
