"""A nodule as the layers see it: 64 x 64 patches at 0.7 mm with HU, soft mask and measured attributes (contract C2).

`votes` counts the readers that drew a pixel. The consensus mask is where two readers agree; where no two do, it is the
single reader's mask, and `mask_votes` says 1.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16, Int16, UInt8

from lungsynth.cohort.cubes import NoduleCube
from lungsynth.cohort.isolation import isolate, soft_mask
from lungsynth.cohort.resampling import CentredGrid
from lungsynth.grids import disc_diameter
from lungsynth.hounsfield import SOLID_HU
from lungsynth.io.atomic import write_arrays
from lungsynth.types import HuPatches

__all__ = [
    "NodulePatches",
    "patches_from_planes",
    "sphere_diameter_mm",
    "texture_class",
]

AlphaPatches = Float16[np.ndarray, "slices 64 64"]
BoolPatches = Bool[np.ndarray, "slices 64 64"]
VotePatches = UInt8[np.ndarray, "slices 64 64"]


def texture_class(rating: float | None) -> str:
    """Class of a mean LIDC texture rating: 1 is ground glass, 5 is solid (contract C2.2)."""
    if rating is None or not np.isfinite(rating):
        return "unknown"
    if rating <= 2:
        return "ground_glass"
    return "solid" if rating >= 4 else "part_solid"


def sphere_diameter_mm(voxels: float, *, voxel_volume_mm3: float) -> float:
    """Diameter of the sphere of equal volume."""
    return float(np.cbrt(6 * voxels * voxel_volume_mm3 / np.pi))


@dataclass(frozen=True, kw_only=True)
class NodulePatches:
    """One nodule: its n axial slices as patches, and what was measured on it.

    Args:
        nodule_id, patient_id, series_id, source: who it is; `source` names the collection.
        patient_known: False when `patient_id` is only a stand-in (contract C5.3).
        hu, context: int16 (n, 64, 64); `hu` is isolated (the lung level outside), `context` as measured.
        alpha: float16 (n, 64, 64) in [0, 1].
        valid: bool (n, 64, 64), what the source covered.
        votes: uint8 (n, 64, 64), readers that drew the pixel.
        mask_votes: 2 for a consensus, 1 for a single reader's mask.
        diameter_mm: of the disc or sphere of equal size (contract C2.1).
        mean_hu, solid_fraction: over the mask.
        attributes: mean ratings of the readers and `reader_diameter_mm`.
        centre_lps_mm: (x, y, z), None where the source does not tell.
        cube: the nodule in three dimensions; None where the source has no volume, or one that a cube does not fit in.
        ball: bool (n, 64, 64), the balls around annotated centres with a margin, where the mask is what is dense in
            one; None where somebody drew the mask.
    """

    nodule_id: str
    patient_id: str
    series_id: str
    source: str
    patient_known: bool = True
    hu: HuPatches
    context: HuPatches
    alpha: AlphaPatches
    valid: BoolPatches
    votes: VotePatches
    mask_votes: int
    diameter_mm: float
    mean_hu: float
    solid_fraction: float
    attributes: dict[str, float] = field(default_factory=dict)
    centre_lps_mm: tuple[float, float, float] | None = None
    cube: NoduleCube | None = None
    ball: BoolPatches | None = None

    def __post_init__(self) -> None:
        if not self.diameter_mm > 0 or len(self.hu) == 0:
            raise ValueError(f"{self.nodule_id}: a nodule needs a slice and a positive diameter")

    @property
    def texture_class(self) -> str:
        """`ground_glass`, `part_solid`, `solid` or `unknown`."""
        return texture_class(self.attributes.get("texture"))

    @property
    def largest(self) -> int:
        """Index of the slice with the largest mask."""
        return int((self.alpha >= 0.5).sum(axis=(1, 2)).argmax())

    def save(self, cohort: Path) -> Path:
        """Writes `nodules/<nodule_id>.npz` and, for a cube, `cubes/<nodule_id>.npz`; returns the first."""
        if self.cube is not None:
            self.cube.save(cohort / "cubes" / f"{self.nodule_id}.npz")
        path = cohort / "nodules" / f"{self.nodule_id}.npz"
        ball: dict[str, Any] = {} if self.ball is None else {"ball": self.ball}
        write_arrays(
            path,
            hu=self.hu,
            context=self.context,
            alpha=self.alpha,
            valid=self.valid,
            votes=self.votes,
            largest=np.int64(self.largest),
            **ball,
        )
        return path


def patches_from_planes(
    planes: Int16[np.ndarray, "slices height width"],
    votes: UInt8[np.ndarray, "slices height width"],
    *,
    spacing_mm: tuple[float, float],
    nodule_id: str,
    patient_id: str,
    series_id: str,
    source: str,
    diameter_mm: float | None = None,
    covered: Bool[np.ndarray, "slices height width"] | None = None,
    patient_known: bool = True,
    attributes: dict[str, float] | None = None,
    centre_lps_mm: tuple[float, float, float] | None = None,
) -> NodulePatches:
    """Cuts a nodule's patches out of the axial slices that show it, each centred on its mask in that slice.

    Args:
        planes: HU of the slices (or of crops of them).
        votes: readers that drew the pixel; slices without the mask are left out.
        spacing_mm: (row, column).
        diameter_mm: of the sphere of equal volume, for volumes; None: of the largest slice's disc.
        covered: pixels that the scanner measured; None: all.

    Raises:
        ValueError: when no slice shows the nodule.
    """
    mask_votes = 2 if (votes >= 2).any() else 1
    masks = votes >= mask_votes
    shown = np.flatnonzero(masks.any(axis=(1, 2)))
    if len(shown) == 0:
        raise ValueError(f"{nodule_id}: no slice shows the nodule")
    inside = np.concatenate([planes[k][masks[k]] for k in shown]).astype(np.float32)
    cuts = [_cut(planes[k], votes[k], masks[k], None if covered is None else covered[k], spacing_mm) for k in shown]
    context, patch_votes, valid = (np.stack(part) for part in zip(*cuts, strict=True))
    patch_masks = (patch_votes >= mask_votes) & valid
    areas = masks[shown].sum(axis=(1, 2))
    isolated = [isolate(c, m, valid=v) for c, m, v in zip(context, patch_masks, valid, strict=True)]
    for k, (_, level) in enumerate(isolated):
        context[k][~valid[k]] = round(level)
    return NodulePatches(
        nodule_id=nodule_id,
        patient_id=patient_id,
        series_id=series_id,
        source=source,
        patient_known=patient_known,
        hu=np.stack([hu for hu, _ in isolated]),
        context=context,
        alpha=np.stack([soft_mask(m, valid=v) for m, v in zip(patch_masks, valid, strict=True)]),
        valid=valid,
        votes=patch_votes,
        mask_votes=mask_votes,
        diameter_mm=diameter_mm or float(disc_diameter(int(areas.max()) * (spacing_mm[0] * spacing_mm[1]))),
        mean_hu=float(inside.mean()),
        solid_fraction=float((inside > SOLID_HU).mean()),
        attributes=attributes or {},
        centre_lps_mm=centre_lps_mm,
    )


def _cut(
    plane: np.ndarray,
    votes: np.ndarray,
    mask: np.ndarray,
    covered: np.ndarray | None,
    spacing_mm: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One slice on the patch grid, centred on `mask`: HU int16, votes uint8, valid bool."""
    grid = CentredGrid(mask, spacing_mm)
    valid = grid.share(np.ones(plane.shape, bool) if covered is None else covered) > 0.999
    # Each vote level is resampled as a soft mask: nearest neighbour would make ragged outlines.
    levels = [grid.share(votes >= v) >= 0.5 for v in range(1, votes.max() + 1)]
    return grid.hu(plane), np.sum(levels, axis=0).astype(np.uint8), valid
