"""What a folder of samples says of itself: `report.html`, and its data set card `README.md`.

The page of a run tells what was asked, what came, how varied it is and how it looks; the card states the licence, the
marks of what is synthetic, and the limits.

Real slices and patients are shown under numbers (`patient 3 of 12`), never ids. Shares of real nodules are those that
the plan was held against; without a cohort only the synthetic ones are shown.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lungsynth import html
from lungsynth.bundles import WeightsInfo
from lungsynth.cohort.reader import CohortSplit
from lungsynth.config import GenerateConfig
from lungsynth.contact_sheet import Tile, draw_tile, tile_colours
from lungsynth.ct.write import read_plane
from lungsynth.detectability import describe_detectability
from lungsynth.errors import InputError
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.io.atomic import write_text
from lungsynth.io.tables import markdown_table
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, Recipe
from lungsynth.placement.policy import DISTANCE_EDGES_MM, SIZE_EDGES_MM
from lungsynth.variety import VarietyFigures

__all__ = ["RunReport", "licence_text", "write_card"]

_SHOWN = 24  # pictures

_CONTENTS = (
    ("images/", "int16 HU, NIfTI, with spacing and affine"),
    ("masks/", "0 background, 1 lung, 2 nodule"),
    ("annotations.csv, datalist.json, detection.json, coco.json", "labels, as LUNA16, MONAI and COCO have them"),
    ("catalogue.parquet, assets/", "the recipe of each slice: it can be made again, bit for bit"),
    ("report.html", "how varied the set is, and how it looks"),
)

_GENERATED_LICENCE = "CC BY 4.0"
_NOTICE = "Synthetic lung CT made by lungsynth. Not for diagnosis."
_MARKS = (
    "every image says in its header, metadata or file name that it is synthetic and from which recipe it was made; "
    "ids begin with synth-"
)
_LIMITS = (
    "Axial slices, not volumes: a nodule is seen in one slice.",
    "For training and testing software, never as the only test; nothing here describes a patient's health.",
    "Labels are exact for what was composited. Vessels and other findings of the lungs are not labelled.",
    "Generated lungs have few small vessels and ribs that merge; generated nodules above 20 mm come out too small.",
)
_TRAINED_ON = "LIDC-IDRI, LCTSC and QIN LUNG CT (CC BY 3.0, The Cancer Imaging Archive)"

Figures = Mapping[str, Mapping[str, float]]


def licence_text(*, real_voxels: bool, sources: Sequence[Mapping[str, Any]] = ()) -> str:
    """What may be done with the data, in one paragraph.

    Args:
        real_voxels: whether voxels of patients may be in them.
        sources: the collections these come from, with `name` and `licence`.
    """
    generated = (
        f"What was generated is under {_GENERATED_LICENCE}; name lungsynth and what its networks were trained on: "
        f"{_TRAINED_ON}, or what the sidecars of your weights name."
    )
    if not real_voxels:
        return f"{generated} No voxel of a patient is in the data."
    named = "; ".join(f"{source['name']}: {source.get('licence') or 'licence unknown'}" for source in sources)
    terms = f"their collections' terms ({named})" if named else "the terms of the cohort's collections"
    return f"{generated} Some samples hold voxels of patients (has_real_voxels in catalogue.parquet): {terms} apply."


def write_card(
    out: Path,
    *,
    samples: int,
    real_voxels: bool,
    sources: Sequence[Mapping[str, Any]] = (),
    contents: Iterable[tuple[str, str]] = (),
) -> Path:
    """Writes `README.md`, the card, into a folder of samples.

    Args:
        out: the folder.
        samples: how many it holds.
        real_voxels: whether voxels of patients may be in them.
        sources: their collections.
        contents: files and what they hold.
    """
    lines = [
        f"# {samples:,} synthetic lung CT slices",
        "",
        _NOTICE,
        "",
        "## Licence",
        "",
        licence_text(real_voxels=real_voxels, sources=sources),
        "",
        "## Marks",
        "",
        f"All data are synthetic, and marked so: {_MARKS}.",
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in _LIMITS),
        "",
    ]
    if rows := list(contents):
        lines += ["## Contents", "", *markdown_table(("file", "content"), rows), ""]
    path = out / "README.md"
    write_text(path, "\n".join(lines))
    return path


@dataclass(frozen=True, eq=False, kw_only=True)
class RunReport:
    """What the page of a run is made from.

    Args:
        config: of the run.
        catalogue: its samples.
        library: its nodules and lungs.
        samples: as the export lists them: `name`, `image`, `label`, `categories`.
        figures: by stage, what it found.
        weights: of the networks, by name.
        variety: what repeats in the set, and how it is distributed.
        cohort: that lends real ones; None without.
        command: that repeats the run; empty where there is none.
    """

    config: GenerateConfig
    catalogue: Catalogue
    library: AssetLibrary
    samples: Sequence[Mapping[str, Any]]
    figures: Figures
    weights: Mapping[str, WeightsInfo]
    variety: VarietyFigures
    cohort: CohortSplit | None = None
    command: str = ""

    def write(self) -> Path:
        """Writes `report.html`, and the card `README.md`, into the folder of the run."""
        count = len(self.catalogue)
        marked = "with voxels of patients" if self.real_voxels else "no voxel of a patient"
        subtitle = f"Synthetic, {marked}. Not for diagnosis. Seed {self.config.seed}."
        sources = self.cohort.cohort.sources if self.cohort else ()
        write_card(self.config.out, samples=count, real_voxels=self.real_voxels, sources=sources, contents=_CONTENTS)
        path = self.config.out / "report.html"
        write_text(path, html.page(f"{count:,} synthetic lung CT slices", subtitle, self._sections()))
        return path

    @property
    def real_voxels(self) -> bool:
        """Whether a sample holds voxels of a patient."""
        return bool(np.any(self.catalogue.table["has_real_voxels"].to_numpy()))

    @property
    def summary(self) -> str:
        """The run in a few lines of Markdown, with what it warns of."""
        own = self.variety
        lines = [
            f"{own.samples:,} synthetic slices with {own.nodules:,} nodules, {own.distinct_nodules:,} of them "
            f"distinct, on {own.distinct_lungs:,} lungs; {own.within_10_mm:.0%} within 10 mm of the pleura.",
            *(f"- **{text}**" for text in self.warnings),
            "",
            "`report.html` among the artifacts shows pictures, distributions and the data set card.",
        ]
        return "\n".join([*lines, "", f"    {self.command}"] if self.command else lines)

    @property
    def warnings(self) -> list[str]:
        """What a user should know before training on the set."""
        texts = [f"{text[0].upper()}{text[1:]}." for text in self.variety.warnings]
        if refused := self.figures.get("export", {}).get("enhanced_refused"):
            texts.append(f"{refused:.0f} samples were left as composites, because the CycleGAN would change a label.")
        return texts

    @cached_property
    def recipes(self) -> list[Recipe]:
        """All samples."""
        return list(self.catalogue)

    def _sections(self) -> Iterator[str]:
        own = self.variety
        yield html.facts(
            {
                "slices": f"{own.samples:,}",
                "nodules": f"{own.nodules:,}",
                "distinct nodules": f"{own.distinct_nodules:,}",
                "distinct lungs": f"{own.distinct_lungs:,}",
                "of the nodules within 10 mm of the pleura": f"{own.within_10_mm:.0%}",
                "of the nodules under 4 mm": f"{own.under_4_mm:.0%}",
            }
        )
        yield html.warnings(self.warnings)
        yield html.section("Asked and made", html.table(("", "asked", "made"), self._asked_and_made()))
        yield html.section("A slice as it is", *self._full_size())
        yield html.section("Some of the slices", html.pictures(self._tiles(), photo=True))
        yield html.section(
            "Distributions", html.paragraph(self._compared), f'<div class="charts">{self._charts()}</div>'
        )
        yield html.section("Variety", html.table(("", "", "what it means"), self._variety_rows()))
        yield html.section("Checks", *(html.paragraph(text) for text in self._checks()))
        yield html.section("Data set card", html.table(("", ""), self._card()))
        yield html.section("Repeat it", html.code(self.command or "The settings stand in run.json."))

    def _asked_and_made(self) -> Iterator[tuple[str, str, str]]:
        own, placement = self.variety, self.config.placement
        shares = ", ".join(f"{count} {name}" for name, count in own.categories.items())
        yield (
            "slices",
            f"{self.config.count:,}" + (" a category" if placement.per_category else ""),
            f"{len(self.recipes):,}",
        )
        yield "nodules", "the policy's shares" if placement.per_category else "as asked, else even", shares
        yield "places", f"policy {placement.policy}", f"{own.within_10_mm:.0%} within 10 mm of the pleura"
        real = f"{own.real_nodules} of {own.nodules} nodules, {own.real_lungs} of {own.samples} slices"
        asked = "none: no cohort" if self.cohort is None else _share(placement.real_share)
        yield "real ones", asked, real
        enhancement = self.config.enhancement
        checked = "with the label check" if enhancement.label_check else "without the label check"
        yield "CycleGAN", checked if enhancement.enabled else "off", self._enhanced

    @property
    def _enhanced(self) -> str:
        found = self.figures.get("export", {})
        if "enhanced_samples" not in found:
            return "composites as they are"
        blended = found.get("enhanced_blended", 0.0)
        return f"{found['enhanced_samples']:.0f} slices, {blended:.0f} partly blended back to keep their labels"

    def _full_size(self) -> Iterator[str]:
        sample = self.samples[len(self.samples) // 2]
        hu, _ = read_plane(self.config.out / sample["image"])
        shown = [(_grey(hu), f"synthetic: {sample['name']}, {', '.join(sample['categories'])}")]
        if self.cohort and (real := _real_slice(self.cohort)):
            shown.append(real)
        yield html.paragraph("Lung window, -600/1500 HU, one screen pixel for each of the image.")
        yield html.pictures(shown)

    def _tiles(self) -> Iterator[tuple[Image.Image, str]]:
        places = np.unique(np.linspace(0, len(self.samples) - 1, min(_SHOWN, len(self.samples))).astype(int))
        colours = tile_colours({category for sample in self.samples for category in sample["categories"]})
        for place in places:
            sample, recipe = self.samples[place], self.recipes[place]
            hu, _ = read_plane(self.config.out / sample["image"])
            mask, _ = read_plane(self.config.out / sample["label"])
            tile = Tile(hu=hu, mask=mask, title=sample["name"], category=sample["categories"][0])
            yield draw_tile(tile, colour=colours[tile.category]), self._caption(recipe)

    def _caption(self, recipe: Recipe) -> str:
        nodule = recipe.nodules[0]
        parts = [nodule.category, f"{nodule.diameter_mm:.0f} mm", f"{nodule.distance_mm:.0f} mm deep"]
        owners = {
            self._owners.get(self.library[name].origin) for name in (recipe.lung, *(n.asset for n in recipe.nodules))
        }
        parts += [f"patient {_number(self._patients, owner)}" for owner in sorted(o for o in owners if o)]
        return ", ".join(parts)

    @cached_property
    def _owners(self) -> Mapping[str, str]:
        return self.cohort.patient_of if self.cohort else {}

    @cached_property
    def _patients(self) -> tuple[str, ...]:
        """Pseudonyms of the cohort's training patients, in the order of their ids."""
        if self.cohort is None:
            return ()
        return tuple(self.cohort.cohort.pseudonyms.named("patients", patient) for patient in self.cohort.patients)

    @property
    def _compared(self) -> str:
        if self.cohort is None:
            return "Percent of the nodules. Without a cohort there are no real ones to compare with."
        return "Percent of the nodules; real: the cohort's training patients, as the plan was held against them."

    def _charts(self) -> str:
        own = self.variety
        names = sorted({*own.categories, *own.real_categories})
        textures = [own.categories.get(name, 0) for name in names]
        counts = Counter(recipe.n_nodules for recipe in self.recipes)
        charts: list[tuple[str, Sequence[str], Sequence[float], Sequence[float]]] = [
            ("diameter, mm", _class_names(SIZE_EDGES_MM), own.sizes, own.real_sizes),
            ("distance to the pleura, mm", _class_names(DISTANCE_EDGES_MM), own.distances, own.real_distances),
            ("texture", names, textures, [own.real_categories.get(name, 0) for name in names]),
            ("nodules on a slice", [str(k) for k in sorted(counts)], [counts[k] for k in sorted(counts)], []),
        ]
        return "".join(html.bars(title, names, {"synthetic": own, "real": real}) for title, names, own, real in charts)

    def _variety_rows(self) -> Iterator[tuple[str, str, str]]:
        own, samples = self.variety, f"for {self.variety.samples} slices"
        yield "distinct nodules", f"{own.distinct_nodules} {samples}", "one that comes again is turned, not another one"
        yield "most frequent nodule", f"on {own.most_often_nodule} slices", "1: none comes again"
        yield "distinct lungs", f"{own.distinct_lungs} {samples}", "the same lung comes with other nodules"
        yield "distinct places", f"{own.distinct_places} {samples}", "of nodules, to the mm on the mean lung"
        if own.nearest_place_mm is not None:
            yield (
                "to the nearest other nodule",
                f"{own.nearest_place_mm:.1f} mm",
                "median, on the mean lung",
            )
        if own.nearest_nodule_hu is not None:
            yield "to the most similar nodule", f"{own.nearest_nodule_hu:.0f} HU", "median difference of their pixels"
        yield "within 10 mm of the pleura", f"{own.within_10_mm:.0%}", "most real nodules are peripheral"
        if own.target_gap is not None:
            yield "off target", f"{own.target_gap:.0%}", "of the nodules lie in another class of distance than aimed at"

    def _checks(self) -> Iterator[str]:
        if "check" in self.figures:
            yield describe_detectability(self.figures["check"]) + "."
        found = self.figures.get("export", {})
        if (kept := found.get("enhanced_labels_kept")) is not None:
            yield (
                f"The CycleGAN alone would have kept {kept:.0%} of the nodules that the detector found before it. "
                "Where it would have lost or added one, the composite was blended back."
            )

    def _card(self) -> Iterator[tuple[str, str]]:
        sources = self.cohort.cohort.sources if self.cohort else ()
        yield "licence", licence_text(real_voxels=self.real_voxels, sources=sources)
        yield "marks", f"All slices are synthetic; {_MARKS}."
        yield "limits", " ".join(_LIMITS)
        for name, content in _CONTENTS:
            yield name, content
        for name, info in self.weights.items():
            yield f"weights of {name}", f"SHA-256 {info.sha256[:16]}..."


def _grey(hu: np.ndarray) -> Image.Image:
    return Image.fromarray(DISPLAY_WINDOW.to_grey(hu))


def _real_slice(cohort: CohortSplit) -> tuple[Image.Image, str] | None:
    """A slice of a training patient, with a nodule if there is one; None when none can be read."""
    entries: Sequence[Any] = cohort.diseased() or cohort.lungs()
    for entry in entries[len(entries) // 2 :]:
        try:
            hu, _, _ = cohort.cohort.read_slice(entry)
        except InputError:
            continue
        patients = tuple(sorted({each.patient_id for each in entries}))
        return _grey(hu), f"real: patient {_number(patients, entry.patient_id)}, for comparison"
    return None


def _number(patients: Sequence[str], patient: str) -> str:
    """A patient as a number, which tells nothing about them."""
    return f"{patients.index(patient) + 1} of {len(patients)}"


def _share(value: float | None) -> str:
    return "the paper's shares" if value is None else f"{value:.0%}"


def _class_names(edges: Sequence[float]) -> list[str]:
    texts = [f"{edge:g}" for edge in edges]
    return [f"<{texts[0]}", *(f"-{text}" for text in texts[1:]), f">{texts[-1]}"]
