"""Tables II and III as JSON and as Markdown: methods of generation, with notes on how to read the columns."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from evaluation.anatomy.table import anatomy_json, anatomy_markdown
from evaluation.cohort_subsets import Subset
from evaluation.generation.ct_checks import CHECK_UNITS
from evaluation.generation.figures import ANATOMY_FIGURES, GenerationFigures
from evaluation.generation.methods import MEMORISER
from evaluation.generation.pictures import MeasuredGenerator
from evaluation.generation.reference import FEW_PATIENTS, GenerationReference
from evaluation.generation.whole_slices import COMPOSED, WholeSlices
from evaluation.methods import Method, relation_to
from evaluation.metrics.bootstrap import Estimate, Estimates
from evaluation.paper import GENERATOR_NAMES, TABLE_2, TABLE_3
from evaluation.segmentation.figures import SIZES_MM
from evaluation.tables import (
    Column,
    TableRow,
    format_estimate,
    json_estimates,
    json_rows,
    markdown_table,
    paper_table,
    relation_notes,
    used_columns,
)
from lungsynth.similarity.samples import SampleKind

__all__ = ["GenerationTable", "minutes_notes"]

_COLUMNS = (
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
_ANATOMY_COLUMNS = (
    Column(key="anatomy_distance", title="Anatomy, mean distance", unit="samples", digits=2),
    Column(key="anatomy_worst", title="Anatomy, worst", unit="samples", digits=2),
    Column(key="anatomy_c2st", title="Two-sample test, on anatomy", unit="samples", digits=2),
    Column(key="patches_c2st", title="on patches of lung", unit="samples", digits=2),
)
_MORE_COLUMNS = (
    Column(key="c2st_features", title="Two-sample test, on features", unit="samples"),
    Column(key="c2st_patch", title="on patches as generated", unit="samples"),
    Column(key="copy_share", title="Copies, share", unit="samples"),
    Column(key="diameter_within", title="Diameter within 1.5 mm", unit="samples", digits=2),
    Column(key="diameter_error_mm", title="Error, mm", unit="samples", digits=2),
    Column(key="diameter_bias_mm", title="Bias, mm", unit="samples", digits=2),
    Column(key="texture_agreement", title="Texture as requested", unit="samples", digits=2),
    Column(key="texture_ratio", title="over real nodules'", unit="samples", digits=2),
    Column(key="parameters", title="Parameters", digits=0),
    Column(key="train_minutes", title="Training, minutes", digits=0),
)
_SIMILARITY_COLUMNS = (
    Column(key="fid", title="FID", unit="samples", digits=2),
    Column(key="kid", title="KID", unit="samples"),
    Column(key="c2st", title="Two-sample test", unit="samples"),
    Column(key="c2st_features", title="on features", unit="samples"),
    Column(key="c2st_patch", title="on patches as generated", unit="samples"),
)
_FIDELITY_COLUMNS = (
    Column(key="diameter_within", title="Diameter within 1.5 mm", unit="samples", digits=2),
    Column(key="diameter_bias_mm", title="Bias, mm", unit="samples", digits=2),
    Column(key="texture_agreement", title="Texture as requested", unit="samples", digits=2),
    Column(key="texture_real", title="Texture as labelled, held-out ones", unit="samples", digits=2),
)
_WHOLE_COLUMNS = (
    Column(key="fid", title="FID", unit="samples", digits=2),
    Column(key="kid", title="KID", unit="samples"),
    Column(key="precision", title="Precision", unit="samples", digits=2),
    Column(key="recall", title="Recall", unit="samples", digits=2),
    Column(key="density", title="Density", unit="samples", digits=2),
    Column(key="coverage", title="Coverage", unit="samples", digits=2),
)
_PAPER: Mapping[SampleKind, Mapping[str, Mapping[str, float]]] = {"nodules": TABLE_2, "lungs": {}, "slices": TABLE_3}
_HEADINGS: Mapping[SampleKind, str] = {
    "nodules": "Table II: generators of nodules",
    "lungs": "Table II: generators of lungs",
    "slices": "Table III: generators of whole diseased slices",
}
_FLOOR_FIGURES = ("fid", "kid", "c2st", "c2st_features", "c2st_patch")
_OVER_FLOOR = {"fid": "FID / floor", "kid": "KID / floor"}
_UNEQUAL_MINUTES = 1.25  # times the shortest training: from here on the table says that trainings differ
_EQUAL_TITLE = GENERATOR_NAMES["w_capsulegan_equal"]


class GenerationTable:
    """Table II of nodules or lungs, Table III of whole slices.

    Args:
        subset: who was evaluated on.
        reference: the real side.
        rows: baselines first.
        real: figures of the held-out samples alone.
        count: samples of each category in the balanced set.
        left_out: methods without figures, and why.
        whole: for Table III, the second reference where there is one.
    """

    def __init__(
        self,
        subset: Subset,
        reference: GenerationReference,
        rows: Sequence[MeasuredGenerator],
        *,
        real: GenerationFigures,
        count: int,
        left_out: Mapping[str, str],
        whole: WholeSlices | None = None,
    ) -> None:
        self._subset, self._reference, self._rows = subset, reference, rows
        self._real, self._count, self._left_out, self._whole = real, count, left_out, whole
        floor = next((row.figures for row in rows if row.method.name == MEMORISER), None)
        self._floor = floor or GenerationFigures()

    @property
    def _kind(self) -> SampleKind:
        return self._reference.kind

    @property
    def name(self) -> str:
        """Of its files."""
        return "table_3" if self._kind == "slices" else "table_2"

    def to_json(self) -> dict[str, Any]:
        """The content of `table_2.json` or `table_3.json`."""
        reference = self._reference
        columns = json_rows((*self._columns, *_MORE_COLUMNS), self._table_rows)
        content = {
            **self._subset.facts(),
            "kind": self._kind,
            "n": len(reference.held_out),
            "n_patients": reference.n_patients,
            "n_per_category": dict(sorted(Counter(reference.held_out.categories).items())),
            "n_training": len(reference.training),
            "count": self._count,
            "features": reference.features.name,
            "features_identity": reference.features.identity,
            "floor": {name: _value(self._floor.headline.get(name)) for name in _FLOOR_FIGURES},
            "real": {**json_estimates(self._real.headline), "copies": self._real.copies},
            "copy_threshold": asdict(reference.threshold),
            "rows": [{**own, **self._details(row)} for own, row in zip(columns, self._rows, strict=True)],
            "left_out": dict(self._left_out),
        }
        if self._kind != "nodules":
            anatomy = reference.anatomy
            content["anatomy"] = anatomy_json(anatomy) if anatomy else {"missing": reference.anatomy_missing}
        if self._kind == "slices":
            samples = self._whole.samples if self._whole else None
            content["diseased"] = {
                "n": len(samples) if samples else 0,
                "n_patients": len(set(samples.owners)) if samples else 0,
                COMPOSED: json_estimates(self._to_whole(COMPOSED)),
            }
        return content

    def to_markdown(self) -> str:
        """The content of `table_2.md` or `table_3.md`."""
        reference, real = self._reference, self._real
        held_out = TableRow(
            name="real",
            title=f"*held-out {self._kind}*",
            figures={**real.headline, "copies": real.copies, **self._anatomy_floor},
        )
        rows = [*self._table_rows, held_out]
        sections = [
            f"# {_HEADINGS[self._kind]}\n",
            f"{len(reference.held_out)} {self._kind} of {reference.n_patients} patients of the {self._subset.split} "
            f"split, features: {reference.features.name}. 95 % intervals. `-`: no such figure. docs/evaluation.md "
            "defines the figures.\n",
            paper_table("Method", self._columns, rows),
            *(f"{note}\n" for note in self._notes()),
            "## More\n",
            paper_table("Method", used_columns(_MORE_COLUMNS, rows), rows),
            "## FID by n\n",
            "Means over random subsets. The bias alone makes FID fall with n: compare at equal n only.\n",
            self._fid_by_n(),
            *self._category_sections(),
            *self._size_sections(),
            "## CT checks\n",
            "Wasserstein distance of each measurement's distribution to that of the held-out ones; in brackets, times "
            "the floor.\n",
            self._checks(),
            *self._anatomy_sections(),
            *(self._slice_sections() if self._kind == "slices" else ()),
        ]
        return "\n".join(section for section in sections if section)

    # Rows and columns

    @property
    def _columns(self) -> tuple[Column, ...]:
        """The paper has no such table of lungs; nodules have no anatomy."""
        columns = _COLUMNS if _PAPER[self._kind] else tuple(replace(column, in_paper=False) for column in _COLUMNS)
        return (*columns, *_ANATOMY_COLUMNS) if self._reference.anatomy else columns

    @property
    def _anatomy_floor(self) -> dict[str, float | None]:
        """What real lungs reach against other ones, by column."""
        anatomy = self._reference.anatomy
        return {key: getattr(anatomy.floor, name).mean for key, name in ANATOMY_FIGURES.items()} if anatomy else {}

    @property
    def _table_rows(self) -> list[TableRow]:
        return [
            TableRow(
                name=row.method.name,
                title=row.method.title,
                figures={
                    **row.figures.headline,
                    "copies": row.figures.copies,
                    "parameters": row.method.parameters,
                    "train_minutes": row.method.train_minutes,
                },
                paper=_PAPER[self._kind].get(row.method.name, {}),
            )
            for row in self._rows
        ]

    def _details(self, row: MeasuredGenerator) -> dict[str, Any]:
        """What a row of the JSON has beside the table's columns."""
        figures = row.figures
        details: dict[str, Any] = {
            "title": row.method.title,
            "training": row.method.relation,
            "fid_by_n": {str(n): value for n, value in figures.fid_by_n.items()},
            "checks": json_estimates(figures.checks),
            "by_category": {name: json_estimates(group) for name, group in figures.by_category.items()},
            "by_size": {name: json_estimates(group) for name, group in figures.by_size.items()},
        }
        if self._kind != "nodules":
            details["anatomy"] = None if figures.anatomy is None else figures.anatomy.to_json()
        if self._kind == "slices":
            details["over_floor"] = {name: self._over_floor(row, name) for name in _OVER_FLOOR}
            details["diseased"] = json_estimates(self._to_whole(row.method.name))
        return details

    def _to_whole(self, name: str) -> Estimates:
        return self._whole.figures.get(name, {}) if self._whole else {}

    def _over_floor(self, row: MeasuredGenerator, name: str) -> float | None:
        figure, floor = _value(row.figures.headline.get(name)), _value(self._floor.headline.get(name))
        return None if figure is None or floor is None or floor <= 0 else figure / floor

    # Sections

    def _fid_by_n(self) -> str:
        sizes = sorted({n for row in self._rows for n in row.figures.fid_by_n})
        cells = [
            [row.method.title, *(format_estimate(row.figures.fid_by_n.get(n), digits=2) for n in sizes)]
            for row in self._rows
        ]
        return markdown_table(["Method", *(f"n = {n}" for n in sizes)], cells) if sizes else ""

    def _category_sections(self) -> Iterator[str]:
        categories = sorted({name for row in self._rows for name in row.figures.by_category})
        effort = self._reference.measurement
        if categories:
            yield (
                f"## By category\n\nDistances and two-sample tests for categories with at least "
                f"{effort.min_group_samples} samples and {effort.min_group_patients} held-out patients; compare with "
                "the floor of the same category, at its own n. The two-sample tests are those of all categories, on "
                "the samples of this one.\n"
            )
        for name in categories:
            groups = [row.figures.by_category.get(name, {}) for row in self._rows]
            yield f"### {name}\n"
            yield self._group_table(groups, (*_SIMILARITY_COLUMNS, *_FIDELITY_COLUMNS))

    def _size_sections(self) -> Iterator[str]:
        sizes = [name for name in SIZES_MM if any(name in row.figures.by_size for row in self._rows)]
        if sizes:
            yield "## By requested diameter\n\nMatched and balanced set together.\n"
        for name in sizes:
            yield f"### {name}\n"
            yield self._group_table([row.figures.by_size.get(name, {}) for row in self._rows], _FIDELITY_COLUMNS)

    def _group_table(self, groups: Sequence[Estimates], columns: Sequence[Column]) -> str:
        """Rows that have a figure of the group, in columns that have one."""
        rows = [
            TableRow(name=row.method.name, title=row.method.title, figures=dict(group))
            for row, group in zip(self._rows, groups, strict=True)
            if group
        ]
        return paper_table("Method", used_columns(columns, rows), rows)

    def _checks(self) -> str:
        names = list(dict.fromkeys(name for row in self._rows for name in row.figures.checks))
        lines = []
        for name in names:
            floor = self._floor.checks.get(name)
            cells = [_times_floor(row.figures.checks.get(name), floor) for row in self._rows]
            lines.append([name, "HU" if name.startswith("hu_") else CHECK_UNITS.get(name, "-"), *cells])
        return markdown_table(["Check", "unit", *(row.method.title for row in self._rows)], lines) if names else ""

    def _anatomy_sections(self) -> Iterator[str]:
        anatomy = self._reference.anatomy
        if anatomy is not None:
            rows = [(row.method.title, row.figures.anatomy) for row in self._rows]
            yield (
                "## Anatomy at 0.7 mm\n\nWhat a radiologist can check, and patches of lung, against the same patients' "
                "normal slices from their own grids. Samples on a coarser grid are interpolated, as compositing does: "
                "the first row says what such a grid costs alone. docs/evaluation_anatomy.md defines the measures.\n"
            )
            yield anatomy_markdown(
                [*rows, ("*training patients, from their own grids*", anatomy.training_judgement)], anatomy
            )

    def _slice_sections(self) -> Iterator[str]:
        ratios = [[self._over_floor(row, name) for name in _OVER_FLOOR] for row in self._rows]
        cells = [
            [row.method.title, *("-" if ratio is None else f"{ratio:.1f}" for ratio in own)]
            for row, own in zip(self._rows, ratios, strict=True)
        ]
        yield "## Over the floor\n"
        yield "How many times the first row's figure; `-` where that is not positive.\n"
        yield markdown_table(["Method", *_OVER_FLOOR.values()], cells)
        if self._whole is None:
            return
        titles = {COMPOSED: "*composed, held-out*"} | {row.method.name: row.method.title for row in self._rows}
        rows = [TableRow(name=name, title=title, figures=self._to_whole(name)) for name, title in titles.items()]
        yield "## Distances to real whole slices with nodules\n"
        yield _about_whole_slices(self._whole)
        yield paper_table("Method", _WHOLE_COLUMNS, rows)

    # Notes

    def _notes(self) -> Iterator[str]:
        reference, methods = self._reference, [row.method for row in self._rows]
        yield from relation_notes(methods)
        if self._subset.split == "validation":
            yield "**Weights were chosen on the validation split: no figures of unseen patients.**"
        for reason in dict.fromkeys(self._left_out.values()):
            names = [name for name, why in self._left_out.items() if why == reason]
            yield f"Left out: {', '.join(names)}: {reason}"
        yield from minutes_notes(methods)
        yield from _about_patients(reference)
        yield from _about_features(self._subset, reference)
        yield (
            "The first row returns training samples: its distances are the floor, training patients against held-out "
            "ones at the same n, and all its samples are copies. Distances, two-sample tests, checks and copies: one "
            "sample for each held-out one, of its category and diameter. Inception Score, MS-SSIM, condition fidelity: "
            f"{self._count} of each category, diameters as in training."
        )
        yield (
            "Two-sample test: share of correct predictions of a small CNN that sees HU and mask, on patients that it "
            "was not trained on; 0.5 is chance. Copies: nearer to a training sample than 99 % of the held-out ones "
            f"are, by size; {reference.held_out_copies} of the {len(reference.held_out)} held-out ones are."
        )
        if reference.anatomy_missing:
            yield f"**Anatomy at 0.7 mm is not judged**: {reference.anatomy_missing}"
        if self._kind == "slices":
            yield from _SLICE_NOTES
        if self._kind == "nodules":
            yield (
                "Nodules are compared as they reach an image: blended by their alpha into a lung of -850 HU. CT "
                "checks, and the two-sample test on patches as generated, see the patches with their generated "
                "surroundings."
            )


_SLICE_NOTES = (
    "**What is real here is composed**: normal slices of held-out patients with nodules of held-out patients, by the "
    "overlay of the product, on its grid (256 x 256 at 1.4 mm), because whole slices with outlined nodules are few. "
    "Lungs, nodules and texture are real, boundaries are not: the stages share the overlay with what they are compared "
    "with, methods in one piece were trained on slices composed likewise from training patients. Where the split has "
    "real whole slices, they are below as a second reference.",
    "The mask is the lungs', nodules included; a method in one piece does not say where its nodule is. The first "
    "stage and the two stages show the same composites, drawn from a large catalogue of generated lungs and generated "
    "nodules alone; several of them may share a lung, which the intervals ignore.",
)


def minutes_notes(methods: Sequence[Method]) -> Iterator[str]:
    """Whether the methods were trained for different times."""
    minutes = {method.title: method.train_minutes for method in methods if method.train_minutes is not None}
    if minutes and max(minutes.values()) > _UNEQUAL_MINUTES * min(minutes.values()):
        times = ", ".join(f"{title} {value:.3g}" for title, value in minutes.items())
        equal = f"; the row {_EQUAL_TITLE} is this method at the others' budget" if _EQUAL_TITLE in minutes else ""
        yield f"**Not trained for equal times**, in minutes: {times}. Compare methods with similar times{equal}."


def _about_patients(reference: GenerationReference) -> Iterator[str]:
    patients = reference.n_patients
    if patients < 2:
        yield "**One patient is held out: nothing here has an interval, and nothing holds for the next patient.**"
    elif patients < FEW_PATIENTS:
        yield (
            f"**{patients} patients are held out: slices of one patient are similar, and n counts slices. Intervals "
            "over so few patients say little, and the order of methods may differ for other patients.** The "
            "two-sample tests of methods are trained on training patients too; the floor's cannot be, and may fall "
            "below 0.5, since it learns patients."
        )


def _about_features(subset: Subset, reference: GenerationReference) -> Iterator[str]:
    features = reference.features
    if features.classes:
        yield (
            f"The Inception Score is that of the feature network's {len(features.classes)} classes "
            f"({', '.join(features.classes)}), which bound it."
        )
    if reference.kind != "lungs":
        yield (
            "The paper's Inception Score is of ImageNet's 1,000 classes, its FID of other features and another n: its "
            "figures are shown for context; the protocols differ."
        )
    if features.sidecar and relation_to(subset, features.sidecar) == "may_have_trained":
        yield (
            "**The feature network may have been trained on evaluated patients** (another split of the same "
            "collections): its distances may flatter. Train it on this cohort with `lungsynth-eval train-features`."
        )


def _about_whole_slices(whole: WholeSlices) -> str:
    patients = len(set(whole.samples.owners))
    return (
        f"{len(whole.samples)} slices of {patients} {'patient' if patients == 1 else 'patients'} on which an expert "
        "outlined a nodule, unchanged. The row *composed* says how far the reference of the tables above is from them. "
        "With so few patients this is about these patients, and FID at unequal n is for the order alone.\n"
    )


def _times_floor(figure: Estimate | None, floor: Estimate | None) -> str:
    if figure is None or figure.value is None:
        return "-"
    text = f"{figure.value:.3g}"
    return f"{text} ({figure.value / floor.value:.1f})" if floor is not None and floor.value else text


def _value(figure: Estimate | None) -> float | None:
    return None if figure is None else figure.value
