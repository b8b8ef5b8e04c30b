"""The seam score of a catalogue: its nodules against those of a cohort's patients that lent it none."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from einops import rearrange, repeat
from PIL import Image
from tqdm import tqdm

from evaluation.boundary.score import BoundaryFeatures, BoundaryReference, composed_patch, measure_boundary
from lungsynth.compositing.render import Renderer
from lungsynth.errors import InputError
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.io.atomic import replacing, write_json, write_text
from lungsynth.placement.catalogue import Catalogue

__all__ = ["BoundaryReport", "measure_catalogue", "real_patches", "write_boundary_report"]

_COLUMNS = 10
_ROWS = 4
_ENLARGE = 2
_REAL_SPLITS = ("validation", "test")


class BoundaryReport(NamedTuple):
    """What was found: a row a nodule (worst first), the table of `SeamReference.compare`, and the worst patches."""

    nodules: pd.DataFrame
    features: dict[str, dict[str, float]]
    worst: list[np.ndarray]


def real_patches(cohort: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Context and mask of the largest slice of each nodule of a cohort's validation and test patients.

    Raises:
        InputError: when the folder is no cohort.
    """
    path = cohort / "nodules.json"
    if not path.is_file():
        raise InputError(f"{path}: expected this file of a cohort, found none. Give a folder of scripts/prepare.py.")
    entries = json.loads(path.read_text())
    for entry in (entry for split in _REAL_SPLITS for entry in entries.get(split, [])):
        with np.load(cohort / entry["nodule"], allow_pickle=False) as patch:
            largest = int(patch["largest"])
            # Where the source ended, the context was filled in.
            if patch["valid"][largest].all():
                yield patch["context"][largest], patch["alpha"][largest] >= 0.5


def measure_catalogue(
    catalogue: Catalogue, renderer: Renderer, reference: BoundaryReference, *, samples: int, seed: int = 0
) -> BoundaryReport:
    """Renders samples of a catalogue, drawn at random, and measures their nodules.

    Args:
        catalogue: of the samples.
        renderer: of their library.
        reference: real nodules.
        samples: at most so many.
        seed: of the draw.

    Raises:
        InputError: when no nodule of them can be measured.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(catalogue))[:samples])
    rows: list[dict[str, Any]] = []
    found: list[BoundaryFeatures] = []
    patches: list[np.ndarray] = []
    for index in tqdm(chosen, desc="seams", unit="sample"):
        recipe = catalogue[int(index)]
        sample = renderer.render(recipe)
        for placed, box in zip(recipe.nodules, sample.boxes, strict=True):
            hu, mask = composed_patch(sample, box, renderer.spacing_mm(recipe))
            if features := measure_boundary(hu, mask):
                facts = {"id": recipe.id, "category": placed.category, "diameter_mm": placed.diameter_mm}
                rows.append(facts | asdict(features) | {"score": reference.score(features)})
                found.append(features)
                patches.append(hu)
    if not found:
        raise InputError(
            f"{catalogue.path}: of {len(chosen)} samples no nodule is large and distinct enough. Take more."
        )
    table = pd.DataFrame(rows)
    order = table["score"].argsort(kind="stable")[::-1].to_numpy()
    worst = [patches[index] for index in order[: _ROWS * _COLUMNS]]
    return BoundaryReport(table.iloc[order], reference.compare(found), worst)


def write_boundary_report(report: BoundaryReport, out: Path) -> None:
    """Writes `seam.csv` (a row a nodule), `seam.json` (the features) and `worst.png` (lung window, worst first)."""
    table = report.nodules.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    write_text(out / "seam.csv", table)
    scores = report.nodules["score"]
    summary = {
        "nodules": len(scores),
        "median_score": float(scores.median()),
        "share_up_to_1": float((scores <= 1).mean()),
        "features": report.features,
    }
    write_json(out / "seam.json", summary)
    with replacing(out / "worst.png") as part:
        _montage(report.worst).save(part, format="png")


def _montage(patches: Sequence[np.ndarray]) -> Image.Image:
    missing = -len(patches) % _COLUMNS
    tiles = np.stack([DISPLAY_WINDOW.to_grey(hu) for hu in patches])
    tiles = np.concatenate([tiles, np.zeros((missing, *tiles.shape[1:]), np.uint8)])
    larger = repeat(tiles, "n h w -> n (h a) (w b)", a=_ENLARGE, b=_ENLARGE)
    return Image.fromarray(rearrange(larger, "(r c) h w -> (r h) (c w)", c=_COLUMNS))
