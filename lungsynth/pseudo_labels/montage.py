"""A picture of pseudo-labels: slices removed from the normal set and why, nodules added, slices kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw

from lungsynth.cohort.montage import Tile, lung_tile, nodule_tile, outlined, spread, stack_blocks, tile_block
from lungsynth.cohort.schema import SliceRow, slice_id
from lungsynth.ct.write import read_plane
from lungsynth.grids import PATCH_PX, PATCH_SPACING_MM
from lungsynth.hounsfield import AIR_HU, Label
from lungsynth.pseudo_labels.series import NETWORK
from lungsynth.pseudo_labels.triage import CandidateRow, CandidateStatus

__all__ = ["pseudo_label_montage"]

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
