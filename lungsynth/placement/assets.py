"""Assets: the nodules and lungs from which samples are made, each stored once, under the hash of its content.

A nodule is int16 (2, 64, 64): HU and alpha * 16384, at 0.7 mm. A lung is int16 (2, H, W): HU and lung mask (1 in lung),
on its own grid. In the folder of an `AssetLibrary`, `assets/<hash>.npy` holds the array and `assets.parquet` has a row
for each asset. What is added twice is stored once, with the row of the first time. Arrays are mapped, and their bytes
checked against their names.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int16

from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM, disc_diameter
from lungsynth.io.atomic import replacing
from lungsynth.io.stored import HASH, Unfit, lists, numbers, objects, read_parquet, texts
from lungsynth.types import Affine, HuPlane, LabelPlane, MaskPlane, Origin

__all__ = [
    "ALPHA_SCALE",
    "Asset",
    "AssetArray",
    "AssetKind",
    "AssetLibrary",
    "TooSmallError",
    "content_hash",
    "load_asset",
    "nodule_diameter",
    "open_asset",
]

ALPHA_SCALE = 16384  # alpha 1.0 as int16: 2**14, so that float32 holds every step exactly

AssetKind = Literal["nodule", "lung"]
AssetArray = Int16[np.ndarray, "2 height width"]

_REMEDY = "Restore the file, or delete it and run the same command again."
_SCHEMA = pa.schema(
    [
        ("hash", pa.string()),
        ("kind", pa.string()),
        ("source", pa.string()),
        ("category", pa.string()),
        ("diameter_mm", pa.float64()),
        ("affine", pa.list_(pa.float64())),
        ("origin", pa.string()),
        ("weights", pa.string()),
        ("patient", pa.string()),
    ]
)
_LATER = {"patient"}  # columns that tables of earlier versions lack
_ROWS = lists(
    objects(
        {"hash": texts(HASH), **{name: texts() for name in ("kind", "source", "category", "origin")}},
        {
            "diameter_mm": numbers(0),
            "affine": lists(numbers(), length=16),
            "weights": texts(),
            "patient": texts(),
        },
    )
)
# A nodule on finer pixels would need gigabytes, and on coarser ones it would not be seen.
_SPACINGS_MM = (0.05, 20.0)
_MAX_DIAMETER_MM = 100.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A row of `assets.parquet`.

    Args:
        hash: name of the file, see `content_hash`.
        kind: nodule or lung.
        source: real (voxels of a patient) or generated.
        category: the nodule's or lung's class.
        origin: pseudonym of the slice or nodule, or the seed that made it.
        diameter_mm: of the disc of equal area to alpha >= 0.5; nodules only.
        affine: 16 floats row by row, (column, row, slice) -> RAS mm; lungs only.
        weights: SHA-256 of the weights that generated it; None for real ones.
        patient: pseudonym of whose voxels it holds; None for generated ones, and where nobody knows.

    Raises:
        InputError: when a value is not one of those, or is missing for its kind.
    """

    hash: str
    kind: AssetKind
    source: Origin
    category: str
    origin: str
    diameter_mm: float | None = None
    affine: tuple[float, ...] | None = None
    weights: str | None = None
    patient: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(AssetKind) or self.source not in get_args(Origin):
            raise InputError(
                f"Asset {self.hash}: kind must be one of {get_args(AssetKind)} and source one of {get_args(Origin)}, "
                f"got {self.kind!r} and {self.source!r}."
            )
        if self.kind == "nodule" and not (self.diameter_mm and 0 < self.diameter_mm <= _MAX_DIAMETER_MM):
            raise InputError(
                f"Asset {self.hash}: a nodule needs a diameter_mm above 0 and up to {_MAX_DIAMETER_MM:g}, got "
                f"{self.diameter_mm}."
            )
        if self.kind == "lung":
            self._check_affine()

    def _check_affine(self) -> None:
        if self.affine is None or len(self.affine) != 16 or not np.isfinite(self.affine).all():
            raise InputError(f"Asset {self.hash}: a lung needs an affine of 16 floats, got {self.affine}.")
        low, high = _SPACINGS_MM
        if not all(low <= spacing <= high for spacing in self.spacing_mm):
            raise InputError(
                f"Asset {self.hash}: its affine says pixels of {self.spacing_mm[0]:g} x {self.spacing_mm[1]:g} mm; a "
                f"slice of a chest has {low:g} to {high:g} mm. Mend the affine of its image, in mm."
            )

    @property
    def affine_matrix(self) -> Affine:
        """The affine of a lung, (4, 4)."""
        if self.affine is None:
            raise InputError(f"Asset {self.hash} is a {self.kind} and has no affine; ask a lung.")
        return np.reshape(np.asarray(self.affine, dtype=np.float64), (4, 4))

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """Spacing (row, column) in mm of the asset's grid."""
        if self.kind == "nodule":
            return PATCH_SPACING_MM, PATCH_SPACING_MM
        columns, rows = np.linalg.norm(self.affine_matrix[:3, :2], axis=0)
        return float(rows), float(columns)


class AssetLibrary:
    """The assets of a folder; iterating gives the `Asset` rows, sorted by hash.

    Args:
        folder: holds `assets/` and `assets.parquet`; what is already there is taken up.

    Raises:
        InputError: when `assets.parquet` is not a table of assets.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._assets = {row["hash"]: _asset(row, folder) for row in _read_rows(folder / "assets.parquet")}
        self._arrays: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._assets)

    def __iter__(self) -> Iterator[Asset]:
        return iter(sorted(self._assets.values(), key=lambda asset: asset.hash))

    def __getitem__(self, asset_hash: str) -> Asset:
        if asset_hash not in self._assets:
            raise InputError(
                f"{self.folder / 'assets.parquet'}: expected a row for asset {asset_hash}, found none among "
                f"{len(self)}. Use the folder that belongs to this catalogue."
            )
        return self._assets[asset_hash]

    def __getstate__(self) -> dict[str, Any]:
        # Mapped arrays would travel as copies to the workers of a DataLoader.
        return self.__dict__ | {"_arrays": {}}

    def add_nodule(
        self,
        hu: Int16[np.ndarray, "64 64"],
        alpha: Float[np.ndarray, "64 64"],
        *,
        category: str,
        source: Origin,
        origin: str,
        diameter_mm: float | None = None,
        weights: str | None = None,
        patient: str | None = None,
    ) -> Asset:
        """Stores a nodule patch.

        Args:
            hu: HU, defined everywhere.
            alpha: soft mask in [0, 1]; the nodule is where it is at least 0.5.
            category: its class.
            source: real or generated.
            origin: id of the nodule and slice, or the seed.
            diameter_mm: measured from `alpha` when None; pass it only where alpha does not show the whole nodule.
            weights: SHA-256 of the generator's weights.
            patient: pseudonym of whose voxels it holds.

        Raises:
            InputError: when alpha leaves [0, 1], reaches 0.5 nowhere, or is not 0 on the border.
        """
        _check_alpha(alpha, origin)
        measured = nodule_diameter(alpha)
        stored = np.stack([hu, np.rint(alpha.astype(np.float64) * ALPHA_SCALE).astype(np.int16)])
        asset = Asset(
            hash=content_hash(stored),
            kind="nodule",
            source=source,
            category=category,
            origin=origin,
            diameter_mm=round(float(measured if diameter_mm is None else diameter_mm), 4),
            weights=weights,
            patient=patient,
        )
        return self._store(asset, stored)

    def add_lung(
        self,
        hu: HuPlane,
        mask: MaskPlane | LabelPlane,
        *,
        affine: Affine,
        source: Origin,
        origin: str,
        category: str = "normal",
        weights: str | None = None,
        patient: str | None = None,
    ) -> Asset:
        """Stores a lung slice on its own grid.

        Args:
            hu: HU, (H, W).
            mask: (H, W), true or non-zero in lung.
            affine: (column, row, slice) -> RAS mm.
            source: real or generated.
            origin: id of the slice, or the seed.
            category: its class.
            weights: SHA-256 of the generator's weights.
            patient: pseudonym of whose voxels it holds.

        Raises:
            InputError: when the mask has another grid or is empty.
        """
        if mask.shape != hu.shape or not mask.any():
            raise InputError(
                f"Lung {origin}: expected a lung mask of shape {hu.shape} with lung in it, got {mask.shape} with "
                f"{int(np.count_nonzero(mask))} lung pixels. Leave this slice out or mend its mask."
            )
        stored = np.stack([hu, (mask > 0).astype(np.int16)])
        asset = Asset(
            hash=content_hash(stored),
            kind="lung",
            source=source,
            category=category,
            origin=origin,
            affine=tuple(float(value) for value in affine.flat),
            weights=weights,
            patient=patient,
        )
        return self._store(asset, stored)

    def load(self, asset_hash: str, *, keep: bool = True) -> AssetArray:
        """The array of an asset, int16 (2, H, W), mapped, read-only; its bytes are checked at first.

        Args:
            asset_hash: of the asset.
            keep: have it at hand when it is asked for again; else its memory is given back after use.

        Raises:
            InputError: when the file is missing, is no array, or its bytes do not match its name.
        """
        if asset_hash in self._arrays:
            return self._arrays[asset_hash]
        array = load_asset(self._path(asset_hash))
        if asset_hash in self._assets:
            _check_content(self._assets[asset_hash], array, self._path(asset_hash))
        if keep:
            self._arrays[asset_hash] = array
        return array

    def shape(self, asset_hash: str) -> tuple[int, int]:
        """(H, W) of an asset, from the head of its file alone.

        Raises:
            InputError: when the file is missing or is no array.
        """
        _, height, width = open_asset(self._path(asset_hash)).shape
        return height, width

    def save_table(self) -> Path:
        """Writes `assets.parquet`, sorted by hash; the same assets give the same bytes."""
        path = self.folder / "assets.parquet"
        with replacing(path) as part:
            pq.write_table(pa.Table.from_pylist([asdict(asset) for asset in self], schema=_SCHEMA), part)
        return path

    def _path(self, asset_hash: str) -> Path:
        return self.folder / "assets" / f"{asset_hash}.npy"

    def _store(self, asset: Asset, array: np.ndarray) -> Asset:
        stored = self._assets.setdefault(asset.hash, asset)
        if stored != asset:
            _logger.debug("Asset %s of %s is stored already, from %s.", asset.hash, asset.origin, stored.origin)
        path = self._path(asset.hash)
        if not path.exists():
            with replacing(path) as part, part.open("wb") as file:
                np.save(file, array)
        return stored


class TooSmallError(InputError):
    """A nodule that is smaller than what is placed; many are, so that they are counted and not told one by one."""


def nodule_diameter(alpha: Float[np.ndarray, "64 64"]) -> float:
    """Diameter in mm of the disc of equal area to alpha >= 0.5."""
    return float(disc_diameter(int((alpha >= 0.5).sum()) * PATCH_SPACING_MM * PATCH_SPACING_MM))


def open_asset(path: Path) -> AssetArray:
    """Maps an asset without reading it.

    Raises:
        InputError: when the file is missing, is no array, or one of another kind.
    """
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: expected an array, got what cannot be read: {error}. {_REMEDY}") from error
    if array.ndim != 3 or array.shape[0] != 2 or array.dtype != np.int16 or array.size == 0:
        raise InputError(f"{path}: expected int16 (2, H, W), got {array.dtype} {array.shape}. {_REMEDY}")
    return array


def load_asset(path: Path) -> AssetArray:
    """Maps an asset and checks its bytes against its name.

    Raises:
        InputError: likewise, or when the bytes were changed.
    """
    array = open_asset(path)
    actual = content_hash(array)
    if actual != path.stem:
        raise InputError(f"{path}: expected bytes with the hash {path.stem}, got {actual}; it was changed. {_REMEDY}")
    return array


def content_hash(array: np.ndarray) -> str:
    """First 16 hex digits of the SHA-256 of the dtype, the shape and the bytes of an array."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _check_content(asset: Asset, array: AssetArray, path: Path) -> None:
    """Whether an array can be what its row says: a nodule with a core and a clear border, or a lung with lung in it."""
    second = array[1]
    if asset.kind == "nodule":
        border = max(abs(int(second[side].max())) for side in (0, -1, (..., 0), (..., -1)))
        fits = array.shape[1:] == (PATCH_PX, PATCH_PX) and border == 0 and second.min() >= 0
        fits = fits and ALPHA_SCALE // 2 <= second.max() <= ALPHA_SCALE
    else:
        fits = bool(second.any()) and second.min() >= 0 and second.max() <= 1
    if not fits:
        raise InputError(
            f"{path}: expected the {asset.kind} that assets.parquet says, got an array of shape {array.shape} whose "
            f"second plane lies in {int(second.min())} to {int(second.max())}. {_REMEDY}"
        )


def _check_alpha(alpha: np.ndarray, origin: str) -> None:
    border = max(alpha[[0, -1]].max(), alpha[:, [0, -1]].max())
    if not (alpha.min() >= 0 and 0.5 <= alpha.max() <= 1 and border == 0):
        raise InputError(
            f"Nodule {origin}: expected alpha in [0, 1] that reaches 0.5 and is 0 on the border, got "
            f"[{alpha.min():g}, {alpha.max():g}] and {border:g} on the border. Leave it out or shrink the nodule."
        )


def _asset(row: dict[str, Any], folder: Path) -> Asset:
    try:
        return Asset(**row | {"affine": None if row["affine"] is None else tuple(row["affine"])})
    except InputError as error:
        raise InputError(f"{folder / 'assets.parquet'}: {error} {_REMEDY}") from error


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    table = read_parquet(path, _SCHEMA, what="a table of assets", remedy=_REMEDY, later=_LATER)
    rows: list[dict[str, Any]] = table.to_pylist()
    try:
        _ROWS(rows)
    except Unfit as error:
        raise InputError(f"{path}: expected a table of assets, but {error}. {_REMEDY}") from error
    return rows
