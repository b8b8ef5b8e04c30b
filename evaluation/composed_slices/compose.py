"""Whole diseased slices of patients, for generators that make such slices in one piece, and to judge all against.

Whole slices with outlined nodules are rare (those of `enhancement.json`), so they are composed: real nodules on real
normal slices, both of patients of one part (`slice_plan`), by the overlay of the product, then brought onto the
generator's grid like its lungs. What comes out is a data set of its own (contract C15), beside it the real ones.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.composed_slices.plan import PlannedSlice, categories_of, plan_slices
from lungsynth.cohort.montage import Tile, outlined, spread, stack_blocks, tile_block
from lungsynth.cohort.reader import Cohort, CohortSplit
from lungsynth.cohort.slices import LUNG_SIZES_PX, slice_on_grid
from lungsynth.compositing.render import Renderer
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import replacing, write_json
from lungsynth.placement.assets import AssetLibrary
from lungsynth.run_folder import FORMAT, RunFolder
from lungsynth.types import Affine, HuPlane, LabelPlane

__all__ = ["PARTS", "ComposedSliceConfig", "compose_slices"]

PARTS = ("training", "validation", "test")
_SHOWN = 16  # of each category, in the picture
_COLUMNS, _TILE_PX = 8, 192

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ComposedSliceConfig:
    """The command line of `scripts/make_slices.py`.

    Args:
        cohort: folder written by `scripts/prepare.py`.
        out: folder of the slices; one left unfinished goes on.
        count: slices a category of the training part.
        held_out: slices a category of the validation part and of the test part.
        seed: of everything random.

    Raises:
        InputError: when a number is out of its range.
    """

    cohort: Path
    out: Path
    count: int = 400
    held_out: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.count, self.held_out) < 1 or self.seed < 0:
            raise InputError(
                f"--count and --held-out must be at least 1 and --seed not negative, got {self.count}, "
                f"{self.held_out} and {self.seed}."
            )


def compose_slices(settings: ComposedSliceConfig) -> dict[str, dict[str, int]]:
    """Composes the slices of all parts and writes `slices.json` and `diseased.json` (contract C15).

    Returns:
        Slices by part and category; `diseased` counts the real ones.

    Raises:
        InputError: when the cohort cannot be used, its training part gives no slice, or `out` holds something else.
    """
    cohort = Cohort.open(settings.cohort)
    training = cohort.split("training").nonempty()
    known = {"count": settings.count, "held_out": settings.held_out, "seed": settings.seed}
    identity = {"format": FORMAT, "lungsynth": version("lungsynth"), **known, **cohort.identity}
    run_folder = RunFolder(path=settings.out, identity=identity)
    run_folder.check()
    if (settings.out / "cohort.json").exists():  # written last
        return _standing(settings.out)
    run_folder.claim()
    composed, diseased = {}, {}
    for key, part in enumerate(PARTS):
        source = cohort.split(part)
        count = settings.count if part == "training" else settings.held_out
        composed[part] = _compose(source, settings, part, categories_of(training), count=count, key=key)
        diseased[part] = list(_diseased(source, settings.out))
    if not composed["training"]:
        raise InputError(
            f"{settings.cohort}: its training part gives no slice: it needs nodules (nodules.json) and normal slices "
            "(lungs.json) with room for them. Prepare the cohort from scans beside crops."
        )
    _draw(composed["training"], settings.out)
    for name, content in (("diseased", diseased), ("slices", composed)):
        _write_json(settings.out / f"{name}.json", content)
    cohort = json.loads((settings.cohort / "cohort.json").read_text())
    facts = {name: cohort[name] for name in ("settings", "sources", "split_hash") if name in cohort}
    _write_json(settings.out / "cohort.json", {"format": cohort.get("format"), **facts, "slices": identity})
    return _standing(settings.out)


def _standing(out: Path) -> dict[str, dict[str, int]]:
    """Counts of a finished folder."""
    composed, diseased = (json.loads((out / f"{name}.json").read_text()) for name in ("slices", "diseased"))
    return {part: {**_counts(composed[part]), "diseased": len(diseased[part])} for part in PARTS}


def _compose(
    source: CohortSplit, settings: ComposedSliceConfig, part: str, categories: Sequence[str], *, count: int, key: int
) -> list[dict[str, Any]]:
    """Writes what is missing of a part's slices; returns their entries."""
    with tempfile.TemporaryDirectory(prefix="lungsynth-slices-") as folder:
        library = AssetLibrary(Path(folder))
        planned = plan_slices(library, source, categories=categories, count=count, seed=settings.seed, key=key)
        renderer = Renderer(library)
        return [_write_composed(one, renderer, settings.out, part) for one in tqdm(planned, desc=part, unit="slice")]


def _write_composed(planned: PlannedSlice, renderer: Renderer, out: Path, part: str) -> dict[str, Any]:
    name = f"slices/{part}_{planned.id}.npz"
    if not (out / name).exists():
        sample = renderer.render(planned.recipe)
        _write_slice(out / name, sample.image, sample.label, sample.affine)
    return {
        "slice": name,
        "category": planned.category,
        "patient_id": planned.patients[0],
        "patients": list(planned.patients),
        "lung": planned.lung,
        "nodules": list(planned.nodules),
    }


def _diseased(source: CohortSplit, out: Path) -> Iterator[dict[str, Any]]:
    """Brings the real whole slices with nodules of a part onto the grid."""
    for entry in source.diseased():
        slice_id = entry.slice_id
        name = f"diseased/{slice_id}.npz"
        try:
            if not (out / name).exists():
                _write_slice(out / name, *source.cohort.read_slice(entry))
        except InputError as error:
            _logger.warning("%s is left out: %s", slice_id, error)
            continue
        patient = entry.patient_id or slice_id
        yield {"slice": name, "category": "diseased", "patient_id": patient, "patients": [patient]}


def _write_slice(path: Path, hu: HuPlane, label: LabelPlane, affine: Affine) -> None:
    column_mm, row_mm = (float(value) for value in np.linalg.norm(affine[:3, :2], axis=0))
    grid_hu, grid_label = slice_on_grid(hu, label, spacing_mm=(row_mm, column_mm), size_px=LUNG_SIZES_PX[0])
    mask = (grid_label != Label.BACKGROUND).astype(np.uint8)
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, hu=grid_hu, mask=mask, label=grid_label)


def _draw(entries: Sequence[dict[str, Any]], out: Path) -> None:
    """`montage.png`: some slices of each category, nodules outlined."""
    blocks = []
    for category in sorted(_counts(entries)):
        paths = [out / entry["slice"] for entry in entries if entry["category"] == category]
        tiles = [_tile(path) for path in spread(paths, _SHOWN)]
        blocks.append(tile_block(f"{category}: {len(tiles)} of {len(paths)}", tiles, columns=_COLUMNS))
    with replacing(out / "montage.png") as part:
        stack_blocks(blocks).save(part, format="PNG")


def _tile(path: Path) -> Tile:
    with np.load(path) as arrays:
        return outlined(arrays["hu"], arrays["label"] == Label.NODULE, _TILE_PX)


def _counts(entries: Sequence[dict[str, Any]]) -> dict[str, int]:
    names = [str(entry["category"]) for entry in entries]
    return {name: names.count(name) for name in sorted(set(names))}


def _write_json(path: Path, content: Any) -> None:
    write_json(path, content)
