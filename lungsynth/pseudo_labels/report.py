"""What pseudo-labelling did: the facts of `cohort.json`, its section of `report.md`, and a picture.

The picture shows slices removed from the normal set and why, nodules added, and slices kept.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw

from lungsynth.cohort.datalists import Datalist
from lungsynth.cohort.montage import Tile, lung_tile, nodule_tile, outlined, spread, stack_blocks, tile_block
from lungsynth.cohort.report import CLASSES
from lungsynth.cohort.schema import SliceRow, slice_id
from lungsynth.ct.write import read_plane
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import AIR_HU, Label
from lungsynth.io.tables import markdown_table
from lungsynth.pseudo_labels.series import NETWORK
from lungsynth.pseudo_labels.triage import CandidateRow, CandidateStatus

__all__ = ["pseudo_label_facts", "pseudo_label_montage", "pseudo_label_section", "relabel"]


def relabel(enhancement: Datalist, drawn: set[str]) -> Datalist:
    """Lets slices on which the network drew nodules (`drawn`, their ids) point to its label maps."""
    return {
        split: [
            {**entry, "label": entry["label"].replace("labels/", f"{NETWORK}/")}
            if entry["image"].removeprefix("slices/").removesuffix(".nii.gz") in drawn
            else entry
            for entry in entries
        ]
        for split, entries in enhancement.items()
    }


def pseudo_label_facts(
    settings: Mapping[str, Any],
    rows: Sequence[CandidateRow],
    *,
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What `cohort.json` says of pseudo-labelling.

    Args:
        settings: threshold, smallest diameter, hash of the weights, number of series that the detector ran on.
        rows: all candidates.
        before: `counts` of the source.
        after: of the pseudo-labelled cohort.
    """
    outcomes = Counter(row.outcome.value for row in rows)
    names = ("normal_slices", "nodules")
    return {
        **settings,
        "candidates": {outcome.value: outcomes[outcome.value] for outcome in CandidateStatus},
        "before": {split: {name: counts[name] for name in names} for split, counts in before.items()},
        "after": {split: {name: counts[name] for name in names} for split, counts in after.items()},
    }


def pseudo_label_section(facts: Mapping[str, Any]) -> str:
    """The section of `report.md` on pseudo-labels; `facts` are those of `pseudo_label_facts`."""
    rows = []
    for split, after in facts["after"].items():
        before = facts["before"][split]
        counts = [f"{before['nodules'].get(name, 0)} -> {after['nodules'].get(name, 0)}" for name in CLASSES]
        rows.append((split, f"{before['normal_slices']} -> {after['normal_slices']}", *counts))
    lines = [
        "",
        "## Pseudo-labels",
        "",
        f"{facts['series']} series without expert marks; candidates count from a probability of "
        f"{facts['threshold']:g} and a diameter of {facts['min_diameter_mm']:g} mm on. "
        f"Weights of lung_seg_bundle: `{facts['weights_lung_seg'][:16]}`.",
        "",
        *markdown_table(("split", "normal slices", *CLASSES), rows),
        "",
        *markdown_table(("candidates", "n"), facts["candidates"].items()),
    ]
    return "\n".join(lines) + "\n"


_WIDE_PX = 256  # a whole slice, and its enlarged part beside it: 3 pairs, 12 nodules or 8 lungs make one width
_PAIRS = 3
_REMOVED = 12
_NODULES = 24
_LUNGS = 16
_CROP_MM = PATCH_PX * PATCH_SPACING_MM
_FRAME = (90, 170, 255)


def pseudo_label_montage(rows: Sequence[CandidateRow], kept: Sequence[SliceRow], out: Path) -> Image.Image:
    """Draws the montage of a pseudo-labelled cohort from its files.

    Args:
        rows: all candidates.
        kept: slices that stayed normal, of the series that the detector ran on.
        out: the pseudo-labelled cohort.
    """
    new = [row for row in rows if row.outcome in (CandidateStatus.NODULE, CandidateStatus.TOO_LARGE)]
    removing = sorted((row for row in new if row.normal_slices_removed), key=lambda row: -row.probability)
    nodules = [out / "nodules" / f"{row.candidate_id}.npz" for row in new if row.outcome is CandidateStatus.NODULE]
    lungs = [out / row.lung for row in kept]
    groups = (
        (
            "slices near these are normal no longer",
            [_pair(row, out) for row in spread(removing, _REMOVED)],
            removing,
            _PAIRS,
        ),
        ("nodules added", [nodule_tile(path) for path in spread(nodules, _NODULES)], nodules, 12),
        ("kept as normal", [lung_tile(path) for path in spread(lungs, _LUNGS)], lungs, 8),
    )
    return stack_blocks(
        [
            tile_block(f"{name}: {len(tiles)} of {len(of)}", tiles, columns=columns)
            for name, tiles, of, columns in groups
            if tiles
        ]
    )


def _pair(row: CandidateRow, out: Path) -> Tile:
    """The slice that shows a candidate largest, and 44.8 mm of it enlarged, network's nodules outlined."""
    name = f"{slice_id(row.series_id, row.slice_index)}.nii.gz"
    hu, affine = read_plane(out / "slices" / name)
    mask = _square(read_plane(out / NETWORK / name)[0] == Label.NODULE, False)
    hu = _square(hu, AIR_HU)
    column_mm, row_mm = np.abs(np.diag(affine)[:2])
    half = [max(1, round(_CROP_MM / 2 / mm)) for mm in (row_mm, column_mm)]
    top, left = round(row.row_px) - half[0], round(row.column_px) - half[1]
    crops = [_crop(plane, top, left, half, fill) for plane, fill in ((hu, AIR_HU), (mask, False))]
    pair = np.stack([outlined(hu, mask, _WIDE_PX), outlined(crops[0], crops[1], _WIDE_PX)])
    picture = Image.fromarray(rearrange(pair, "part h w c -> h (part w) c"))
    draw = ImageDraw.Draw(picture)
    scale = [_WIDE_PX / size for size in hu.shape]
    draw.rectangle(
        (left * scale[1], top * scale[0], (left + 2 * half[1]) * scale[1], (top + 2 * half[0]) * scale[0]),
        outline=_FRAME,
    )
    text = f"p {row.probability:.2f}, {row.diameter_mm:.1f} mm: {row.normal_slices_removed} slices out"
    draw.rectangle(draw.textbbox((_WIDE_PX + 4, 2), text), fill=(0, 0, 0))
    draw.text((_WIDE_PX + 4, 2), text, fill=(255, 255, 255))
    return np.asarray(picture)


def _square(plane: np.ndarray, fill: int | bool) -> np.ndarray:
    """Rows or columns added at the end, so that a picture of equal sides does not distort."""
    side = max(plane.shape)
    return np.pad(plane, [(0, side - size) for size in plane.shape], constant_values=fill)


def _crop(plane: np.ndarray, top: int, left: int, half: list[int], fill: int | bool) -> np.ndarray:
    """`2 * half` pixels from (top, left), filled beyond the slice's border."""
    padded = np.pad(plane, [(2 * half[0],) * 2, (2 * half[1],) * 2], constant_values=fill)
    row, column = top + 2 * half[0], left + 2 * half[1]
    return padded[row : row + 2 * half[0], column : column + 2 * half[1]]
