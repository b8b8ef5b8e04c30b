"""What a detector says of an image: candidates in voxels, from whatever it gives or writes.

Files: CSV with LUNA16's columns (`seriesuid,coordX,coordY,coordZ,probability`, LPS mm; `diameter_mm` where it is
known), MONAI's detection JSON (`box` as centre and size in LPS mm, `label_scores`), or a mask or probability map in
NIfTI on the image's grid. What is none of these is refused in one sentence, which stands in the report.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from scipy import ndimage

from lungsynth.errors import InputError, naming_file
from lungsynth.geometry import lps_to_voxel
from lungsynth.types import Affine, Candidates, HuVolume

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Detection", "TrialImage", "detection_of", "find_output", "read_detection", "read_table"]

_COLUMNS = ("coordX", "coordY", "coordZ", "probability")
_OUTSIDE_MM = 10.0  # beyond the image: coordinates of another system
_HALF = 0.5  # of a probability map
_ENDINGS = ("", ".csv", ".json", ".nii.gz", ".nii")
_CORNERS = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True, eq=False, kw_only=True)
class TrialImage:
    """What a detector is asked about: a slice today, and as well a volume.

    Args:
        name: unique, of its file.
        hu: int16 (D, H, W).
        affine: (column, row, slice) -> RAS mm.
    """

    name: str
    hu: HuVolume
    affine: Affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(slice, row, column)."""
        columns, rows, slices = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(slices), float(rows), float(columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class Detection:
    """Candidates of an image.

    Args:
        candidates: (n, 5): slice, row, column in voxels, diameter in mm (0 where unknown), probability.
        pieces: (D, H, W), 1 + the index of the candidate that each voxel belongs to; None without a mask.
    """

    candidates: Candidates
    pieces: np.ndarray | None = None


def detection_of(output: Any, image: TrialImage) -> Detection:
    """What a Python detector returned: candidates (n, 5), or a mapping with `candidates` or a map `nodule`.

    Raises:
        InputError: when it is neither.
    """
    if isinstance(output, Mapping):
        if "candidates" not in output and "nodule" in output:
            return _from_map(np.asarray(output["nodule"]), image)
        output = output.get("candidates")
    try:
        table = np.asarray(output if output is not None else "", dtype=np.float64)
    except (TypeError, ValueError):
        table = np.zeros(0)
    if table.size == 0 and (table.ndim == 2 or isinstance(output, list | tuple)):
        return Detection(candidates=np.zeros((0, 5)))
    if table.ndim != 2 or table.shape[1] != 5:
        raise InputError(f"it returned {type(output).__name__} of shape {table.shape} instead of candidates (n, 5)")
    return Detection(candidates=_checked(table, image))


def find_output(path: Path) -> Path | None:
    """What was written to `path`, itself or with an ending; in a folder, the one file that can be read."""
    for ending in _ENDINGS:
        found = path.with_name(path.name + ending)
        if found.is_file():
            return found
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.name.endswith(_ENDINGS[1:])]
        return files[0] if len(files) == 1 else None
    return None


def read_detection(path: Path, image: TrialImage, *, mask_label: int | None = None) -> Detection:
    """Reads the file that a detector wrote of an image.

    Args:
        path: CSV, JSON or NIfTI.
        image: what it is of.
        mask_label: id of nodules in a label map; None where everything but 0 is nodule.

    Raises:
        InputError: in one sentence without a path, when it makes no sense.
    """
    if path.stat().st_size == 0:
        raise InputError("it wrote an empty file")
    try:
        with naming_file(path, "cannot be read", remedy="see docs/how_to/run_a_trial.md"):
            if path.name.endswith((".nii", ".nii.gz")):
                return _read_mask(path, image, mask_label)
            text = path.read_text(encoding="utf-8-sig")
            if text.lstrip()[:1] in ("{", "["):
                return _from_json(json.loads(text), image)
            return read_table(text, [image])[image.name]
    except InputError as error:
        raise InputError(str(error).replace(str(path), f"its {path.suffix} file")) from error


def read_table(text: str, images: Sequence[TrialImage]) -> dict[str, Detection]:
    """Candidates of images out of a CSV with LUNA16's columns; an image without a row has none.

    Raises:
        InputError: when columns are missing, or rows are of other images or make no sense.
    """
    import pandas as pd  # here, because processes of detectors start sooner without

    table = pd.read_csv(io.StringIO(text), skipinitialspace=True)
    table.columns = [str(name).strip() for name in table.columns]
    if missing := [name for name in _COLUMNS if name not in table.columns]:
        raise InputError(f"its CSV lacks the columns {', '.join(missing)}")
    if "seriesuid" not in table.columns:
        if len(images) > 1:
            raise InputError("its CSV lacks the column seriesuid, which says of which image a row is")
        table["seriesuid"] = images[0].name
    named = table["seriesuid"].astype(str).map(_stem)
    if strangers := sorted(set(named) - {image.name for image in images}):
        raise InputError(f"its CSV is of {strangers[0]!r}, which was not asked")
    return {image.name: _from_rows(table[named == image.name], image) for image in images}


def _from_rows(rows: "DataFrame", image: TrialImage) -> Detection:
    import pandas as pd

    numbers = rows[list(_COLUMNS)].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    diameter = rows["diameter_mm"].to_numpy(dtype=np.float64) if "diameter_mm" in rows else np.zeros(len(rows))
    return Detection(candidates=_in_voxels(numbers[:, :3], diameter, numbers[:, 3], image))


def _from_json(content: Any, image: TrialImage) -> Detection:
    entry = _entry(content, image)
    boxes = np.asarray(entry.get("box", entry.get("boxes")), dtype=np.float64)
    probability = np.asarray(entry.get("label_scores", entry.get("scores")), dtype=np.float64)
    if boxes.size == 0:
        return Detection(candidates=np.zeros((0, 5)))
    if boxes.ndim != 2 or boxes.shape[1] != 6 or probability.shape != (len(boxes),):
        raise InputError(f"its JSON has boxes of shape {boxes.shape} and {probability.shape} scores, not (n, 6) and n")
    return Detection(candidates=_in_voxels(boxes[:, :3], boxes[:, 3:5].mean(axis=1), probability, image))


def _entry(content: Any, image: TrialImage) -> Mapping[str, Any]:
    """The part of a detection JSON that is of this image."""
    entries = list(_entries(content))
    own = [entry for entry in entries if _stem(str(entry.get("image", ""))) == image.name]
    chosen = own or (entries if len(entries) == 1 else [])
    if len(chosen) != 1 or not {"box", "boxes"} & set(chosen[0]):
        raise InputError(f"its JSON has no `box` and `label_scores` of {image.name}")
    return chosen[0]


def _entries(content: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(content, list):
        for item in content:
            yield from _entries(item)
    elif isinstance(content, Mapping):
        if {"box", "boxes"} & set(content):
            yield content
        else:
            for item in content.values():
                yield from _entries(item)


def _read_mask(path: Path, image: TrialImage, mask_label: int | None) -> Detection:
    import nibabel as nib  # likewise

    array = np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim == 4 and array.shape[0] == 1:  # a channel that MONAI kept
        array = array[0]
    if array.ndim != 3:
        raise InputError(f"its mask has the shape {array.shape}, the image {image.hu.shape[::-1]}")
    volume = rearrange(array, "width height depth -> depth height width")
    if mask_label is not None:
        volume = (np.rint(volume) == mask_label).astype(np.float32)
    return _from_map(volume, image)


def _from_map(volume: np.ndarray, image: TrialImage) -> Detection:
    """Connected pieces of a mask, or of a probability map from one half on; their height is its highest value."""
    if volume.shape != image.hu.shape:
        raise InputError(f"its mask has the shape {volume.shape}, the image {image.hu.shape}")
    if not np.isfinite(volume).all():
        raise InputError("its mask holds NaN or infinity")
    values = volume.astype(np.float64)
    if not (values.min() >= 0 and values.max() <= 1):
        if not np.array_equal(values, np.rint(values)) or values.min() < 0:
            raise InputError(f"its mask holds {values.min():g} to {values.max():g}, neither labels nor probabilities")
        values = (values > 0).astype(np.float64)
    pieces, count = ndimage.label(values >= _HALF, _CORNERS)
    index = range(1, count + 1)
    centres = np.array(ndimage.center_of_mass(pieces > 0, pieces, index), dtype=np.float64).reshape(count, 3)
    heights = np.array(ndimage.maximum(values, pieces, index), dtype=np.float64).reshape(count, 1)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:] * np.prod(image.spacing_mm[1:])
    diameters = 2 * np.sqrt(sizes / np.pi) if len(image.hu) == 1 else np.cbrt(6 * sizes * image.spacing_mm[0] / np.pi)
    return Detection(candidates=np.hstack([centres, diameters[:, None], heights]), pieces=pieces)


def _in_voxels(xyz_mm: np.ndarray, diameter_mm: np.ndarray, probability: np.ndarray, image: TrialImage) -> np.ndarray:
    voxels = lps_to_voxel(image.affine, xyz_mm.reshape(-1, 3))
    table = np.hstack([voxels, np.nan_to_num(diameter_mm)[:, None], probability[:, None]])
    return _checked(table, image)


def _checked(table: np.ndarray, image: TrialImage) -> np.ndarray:
    if not np.isfinite(table).all():
        raise InputError("its candidates hold what is no finite number")
    probability = table[:, 4]
    if len(table) and not 0 <= probability.min() <= probability.max() <= 1:
        raise InputError(f"its probabilities are {probability.min():g} to {probability.max():g}, not within 0..1")
    outside = np.maximum(-table[:, :3], table[:, :3] - (np.array(image.hu.shape) - 1)) * image.spacing_mm
    if (far := int((outside > _OUTSIDE_MM).any(axis=1).sum())) > 0:
        raise InputError(
            f"{far} of its {len(table)} candidates lie outside the image: files need LPS mm, arrays slice, row, column"
        )
    return table


def _stem(name: str) -> str:
    stem = Path(name).name
    for ending in (".nii.gz", ".nii", ".mhd", ".mha"):
        stem = stem.removesuffix(ending)
    return stem
