"""The lungs of a slice as a plan sees them: their bounding box, distances to the edge of the parenchyma, vessels.

Pixels are (row, column), with the centre of the first pixel at (0, 0). Distances are positive in the lung and negative
outside; the edge lies half a pixel from the centres of its pixels. Holes no larger than a vessel are no edge.
Distances are kept as integers, multiples of 1/64 mm, and shares as sums over rectangles, so that all that is derived
from them is the same on every machine.

`LibraryLungs` are those of a library, measured one at a time and forgotten again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int16, Int32
from scipy import ndimage

from lungsynth.errors import InputError
from lungsynth.geometry import UNITS_PER_MM, Box
from lungsynth.hounsfield import DENSE_HU
from lungsynth.types import HuPlane, MaskPlane

if TYPE_CHECKING:
    from lungsynth.placement.assets import Asset, AssetLibrary

__all__ = [
    "AIRWAY_HU",
    "MARGIN_PX",
    "Frames",
    "LibraryLungs",
    "LungShape",
    "bounding_box",
    "filled_lung",
]

AIRWAY_HU = -960  # what is darker is the lumen of airways, or emphysema, and no place for a nodule
MARGIN_PX = 2  # background around the bounding box, so that the neighbours of each of its pixels exist
_MAX_HOLE_MM2 = 80.0  # in the lung mask, that counts as lung: the cross-section of a vessel of 10 mm


def bounding_box(mask: MaskPlane) -> Box:
    """The box around what is true, something at least."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class LungShape:
    """Geometry of a lung mask, computed once a lung and looked up for each pair.

    Args:
        box: bounding box of the lungs.
        spacing_mm: (row, column).
        signed: distance to the edge in 1/64 mm, on the box and `MARGIN_PX` around it.
        vessel_sums: vessel pixels above and left of each corner of that grid; None when vessels are not known.
        airway_sums: likewise for the lumen of airways.
    """

    box: Box
    spacing_mm: tuple[float, float]
    signed: Int16[np.ndarray, "rows columns"]
    vessel_sums: Int32[np.ndarray, "corner_rows corner_columns"] | None = None
    airway_sums: Int32[np.ndarray, "corner_rows corner_columns"] | None = None

    @classmethod
    def from_mask(
        cls,
        mask: MaskPlane,
        *,
        spacing_mm: tuple[float, float],
        hu: HuPlane | None = None,
        vessels: MaskPlane | None = None,
    ) -> "LungShape":
        """Measures a lung mask.

        Args:
            mask: (H, W), true in lung.
            spacing_mm: (row, column).
            hu: the slice, to find its vessels and airways.
            vessels: (H, W), true in vessels and airways; takes the place of what the HU say.

        Raises:
            InputError: when there is no lung, or another plane has another grid.
        """
        others = [plane.shape for plane in (hu, vessels) if plane is not None]
        if not mask.any() or any(shape != mask.shape for shape in others):
            raise InputError(
                f"Expected a lung mask with lung in it on the grid of its slice, got {int(mask.sum())} lung pixels, "
                f"shape {mask.shape} and slice {others}. Leave it out or mend its mask."
            )
        box = bounding_box(mask)
        lung = filled_lung(np.pad(_crop(mask, box), MARGIN_PX), spacing_mm)
        vessel_sums = airway_sums = None
        if vessels is not None:
            vessel_sums = _sums(lung & np.pad(_crop(vessels, box), MARGIN_PX))
        elif hu is not None:
            values = np.pad(_crop(hu, box), MARGIN_PX)
            vessel_sums, airway_sums = _sums(lung & (values > DENSE_HU)), _sums(lung & (values < AIRWAY_HU))
        return cls(
            box=box,
            spacing_mm=spacing_mm,
            signed=_signed_distance(lung, spacing_mm),
            vessel_sums=vessel_sums,
            airway_sums=airway_sums,
        )

    @property
    def size_px(self) -> tuple[int, int]:
        """Rows and columns of the bounding box."""
        return self.box.row_to - self.box.row_from, self.box.column_to - self.box.column_from

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the bounding box."""
        return self.size_px[0] * self.spacing_mm[0], self.size_px[1] * self.spacing_mm[1]

    def to_pixels(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of positions in the bounding box (see `presence`)."""
        row = self.box.row_from - 0.5 + v * self.size_px[0]
        return row, self.box.column_from - 0.5 + u * self.size_px[1]

    def to_unit(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(u, v) of pixels: the inverse of `to_pixels`."""
        v = (row + 0.5 - self.box.row_from) / self.size_px[0]
        return (column + 0.5 - self.box.column_from) / self.size_px[1], v

    def distance_mm(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Distance to the edge at the pixel nearest to each position, float64; at the margin beyond the box."""
        rows, columns = self.signed.shape
        row = np.clip(np.rint(row).astype(np.int64) - self.box.row_from + MARGIN_PX, 0, rows - 1)
        column = np.clip(np.rint(column).astype(np.int64) - self.box.column_from + MARGIN_PX, 0, columns - 1)
        return self.signed[row, column] / UNITS_PER_MM


def _crop(plane: np.ndarray, box: Box) -> np.ndarray:
    return plane[box.row_from : box.row_to, box.column_from : box.column_to]


def filled_lung(lung: MaskPlane, spacing_mm: tuple[float, float]) -> MaskPlane:
    """A lung mask with the holes that vessels leave, of background at the first pixel; (row, column) in mm."""
    holes, _ = ndimage.label(~lung)
    small = np.bincount(holes.ravel()) * spacing_mm[0] * spacing_mm[1] <= _MAX_HOLE_MM2
    # Label 0 is lung; the label of the margin is what surrounds the lungs, however small.
    small[[0, holes[0, 0]]] = False
    return np.asarray(lung | small[holes])


def _signed_distance(lung: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    # In units of the finer spacing: squares of integers are exact, whatever the machine, where pixels are square.
    unit = min(spacing_mm)
    sampling = (spacing_mm[0] / unit, spacing_mm[1] / unit)
    inside = ndimage.distance_transform_edt(lung, sampling=sampling)
    outside = ndimage.distance_transform_edt(~lung, sampling=sampling)
    signed = np.where(lung, inside - 0.5, 0.5 - outside) * (unit * UNITS_PER_MM)
    return np.clip(np.rint(signed), -32768, 32767).astype(np.int16)


def _sums(pixels: np.ndarray) -> np.ndarray:
    sums = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + 1), dtype=np.int32)
    np.cumsum(np.cumsum(pixels, axis=0, dtype=np.int32), axis=1, out=sums[1:, 1:])
    return sums


@dataclass(frozen=True, eq=False, kw_only=True)
class Frames:
    """Boxes around lungs, which make places on different lungs comparable.

    Args:
        boxes: of each lung: first row, first column, rows, columns.
        size_mm: mean height and width.
    """

    boxes: Float64[np.ndarray, "lungs 4"]
    size_mm: tuple[float, float]

    @classmethod
    def of(cls, boxes: Iterable[tuple[Box, tuple[float, float]]]) -> "Frames":
        """Frames of boxes on grids of a spacing (row, column) in mm; at least one."""
        rows, sizes = [], []
        for box, spacing_mm in boxes:
            height, width = box.row_to - box.row_from, box.column_to - box.column_from
            rows.append((box.row_from, box.column_from, height, width))
            sizes.append((height * spacing_mm[0], width * spacing_mm[1]))
        height_mm, width_mm = np.mean(sizes, axis=0).tolist()
        return cls(boxes=np.array(rows, dtype=np.float64), size_mm=(height_mm, width_mm))

    def places_mm(self, lung: np.ndarray, row_px: np.ndarray, col_px: np.ndarray) -> Float64[np.ndarray, "pairs n 2"]:
        """Places of the n nodules of each pair on the mean lung: (down, left) in mm from its box's corner."""
        first_row, first_column, rows, columns = (side[:, None] for side in self.boxes[lung].T)
        v, u = (row_px + 0.5 - first_row) / rows, (col_px + 0.5 - first_column) / columns
        return np.stack([v * self.size_mm[0], u * self.size_mm[1]], axis=-1)


_SAMPLE = 48  # lungs at most that a mean shape is taken of; more cost time and change little


@dataclass(frozen=True, eq=False, kw_only=True)
class LibraryLungs(Sequence[LungShape]):
    """Lungs in the order of their hashes; asking for one reads and measures it.

    Args:
        library: holds their arrays.
        assets: of the lungs.
        vessel_masks: folder with `<pseudonym of the slice>.nii.gz` of vessels and airways (not 0), on the grid of real
            lungs; where there is none, the HU tell.
    """

    library: "AssetLibrary"
    assets: Sequence["Asset"]
    vessel_masks: Path | None = None

    @classmethod
    def of(
        cls, library: "AssetLibrary", *, real_voxels: bool = True, vessel_masks: Path | None = None
    ) -> "LibraryLungs":
        """The lungs of a library, or those without a patient's voxels.

        Raises:
            InputError: when there is none.
        """
        assets = [asset for asset in library if asset.kind == "lung" and (real_voxels or asset.source != "real")]
        if not assets:
            raise InputError(f"{library.folder}: a plan needs lungs, the library has none that may be used.")
        names = [f"{asset.origin}.nii.gz" for asset in assets if asset.source == "real"]
        if vessel_masks is not None and names and not any((vessel_masks / name).is_file() for name in names):
            raise InputError(
                f"{vessel_masks}: expected masks named after real lungs, such as {names[0]}, found none. Name them as "
                "pseudonyms.csv of the cohort does."
            )
        return cls(library=library, assets=assets, vessel_masks=vessel_masks)

    @property
    def hashes(self) -> list[int]:
        """Hashes of the lungs as numbers."""
        return [int(asset.hash, 16) for asset in self.assets]

    def __len__(self) -> int:
        return len(self.assets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        asset = self.assets[index]
        hu, mask = self.library.load(asset.hash, keep=False)
        return LungShape.from_mask(mask > 0, spacing_mm=asset.spacing_mm, hu=hu, vessels=self._vessels(asset))

    def __iter__(self) -> Iterator[LungShape]:
        return (self[index] for index in range(len(self)))

    def frames(self) -> Frames:
        """The boxes around the lungs alone, which takes no measuring."""
        return Frames.of((self._box(asset), asset.spacing_mm) for asset in self.assets)

    def _box(self, asset: "Asset") -> Box:
        return bounding_box(self.library.load(asset.hash, keep=False)[1] > 0)

    def first(self, count: int) -> "LibraryLungs":
        """The first so many."""
        return replace(self, assets=self.assets[:count])

    def sample(self) -> list[LungShape]:
        """Some of the lungs, evenly spread."""
        places = np.unique(np.linspace(0, len(self) - 1, min(_SAMPLE, len(self))).astype(int))
        return [self[int(place)] for place in places]

    def _vessels(self, asset: "Asset") -> MaskPlane | None:
        path = None if self.vessel_masks is None else self.vessel_masks / f"{asset.origin}.nii.gz"
        if path is None or asset.source != "real" or not path.is_file():
            return None
        from lungsynth.ct.write import read_plane

        return read_plane(path)[0] != 0
