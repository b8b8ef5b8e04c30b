"""How an export writes samples: the formats and layouts. Same samples, same bytes.

No clock, no user name and no chance is in a file. A format writes a shard of the catalogue at a time. NIfTI, MetaImage,
PNG and DICOM have files of their own for each sample; WebDataset and Zarr have one file or folder a shard. What lists
say of the samples stands in `labels`.
"""

import errno
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import numpy as np
from PIL import Image

from lungsynth.ct.write import write_metaimage, write_plane
from lungsynth.errors import InputError
from lungsynth.export.labels import write_msd, write_nnunet
from lungsynth.export.split import PARTS, Part, Provenance
from lungsynth.geometry import Box
from lungsynth.hounsfield import DISPLAY_WINDOW, Label
from lungsynth.io.atomic import replacing, write_bytes
from lungsynth.types import Affine, HuPlane, LabelPlane, MaskPlane

if TYPE_CHECKING:
    from lungsynth.compositing.overlay import NoduleMask
    from lungsynth.compositing.render import Annotation
    from lungsynth.enhancement.stage import EnhancedSlice

__all__ = ["FORMATS", "ExportedSample", "Format", "Written"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ExportedSample:
    """A sample with its name.

    Args:
        name: of its files, unique.
        recipe: id of the recipe that made it.
        day: of the scan, 0 but in a growth series.
        image: HU.
        label: `Label` ids.
        affine: (column, row, slice) -> RAS mm.
        boxes: one a nodule.
        masks: one a nodule, in its box.
        annotations: one a nodule.
        categories: one a nodule.
        enhanced: what the enhancer did; None without it.
        part: of the catalogue, see `split`; only set for layouts whose folders follow from it.
    """

    name: str
    recipe: str
    day: int
    image: HuPlane
    label: LabelPlane
    affine: Affine
    boxes: tuple[Box, ...]
    masks: "tuple[NoduleMask, ...]"
    annotations: "tuple[Annotation, ...]"
    categories: tuple[str, ...]
    enhanced: "EnhancedSlice | None" = None
    part: Part = "training"

    @property
    def descrip(self) -> str:
        """What a header says of it."""
        return f"synthetic: lungsynth {self.recipe}"

    @property
    def lung(self) -> MaskPlane:
        """Lung with its nodules, (H, W)."""
        return self.label != Label.BACKGROUND

    @property
    def nodules(self) -> list[MaskPlane]:
        """One mask a nodule, (H, W)."""
        planes = [np.zeros(self.label.shape, dtype=bool) for _ in self.boxes]
        for plane, box, mask in zip(planes, self.boxes, self.masks, strict=True):
            plane[box.row_from : box.row_to, box.column_from : box.column_to] = mask
        return planes

    def facts(self) -> dict[str, Any]:
        """What the label files need, as JSON."""
        return {
            "name": self.name,
            "recipe": self.recipe,
            "day": self.day,
            "shape": list(self.image.shape),
            "affine": self.affine.ravel().tolist(),
            "categories": list(self.categories),
            "boxes": [[int(value) for value in box] for box in self.boxes],
            "annotations": [list(annotation) for annotation in self.annotations],
            "runs": [_run_lengths(mask) for mask in self.nodules],
            **({"enhancement": self.enhanced.facts()} if self.enhanced else {}),
        }


class Written(NamedTuple):
    """A sample's files, relative to the output folder; for shards, `<shard>#<member>`."""

    image: str
    label: str


Writer = Callable[[Sequence[ExportedSample], Path, str], tuple[list[Written], list[str]]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """How samples are written.

    Args:
        write: (samples, output folder, name of the shard) -> the samples' files, and all files or folders written.
        shard_size: recipes a shard.
        one_file: whether a shard is one file (or folder), so that ranges must begin and end with shards.
        by_part: whether names of files follow from the samples' parts.
        check: raises `InputError` when a package that it needs is missing.
        write_lists: (samples' facts, their provenances, output folder): lists that only this layout has.
    """

    write: Writer
    shard_size: int
    one_file: bool = False
    by_part: bool = False
    check: Callable[[], Any] = lambda: None
    write_lists: Callable[[Sequence[Mapping[str, Any]], Sequence[Provenance], Path], Any] = lambda *_: None


def _nifti_in(image: str, label: str) -> Writer:
    """Writes NIfTI under names that are made of a sample's own, `{}`."""

    def write(samples: Sequence[ExportedSample], out: Path, shard: str) -> tuple[list[Written], list[str]]:
        written = [Written(image.format(sample.name), label.format(sample.name)) for sample in samples]
        for sample, names in zip(samples, written, strict=True):
            write_plane(out / names.label, sample.label, sample.affine, descrip=sample.descrip)
            write_plane(out / names.image, sample.image, sample.affine, descrip=sample.descrip)
        return written, _flat(written)

    return write


def _luna16(samples: Sequence[ExportedSample], out: Path, shard: str) -> tuple[list[Written], list[str]]:
    """LUNA16 has a folder `subset<n>` a fold, and masks of the lungs: 3 and 4, at the lower and the higher column."""
    written, files = [], []
    for sample in samples:
        names = Written(f"subset{PARTS.index(sample.part)}/{sample.name}.mhd", f"masks/{sample.name}.mhd")
        columns = np.flatnonzero(sample.lung.any(axis=0))
        sides = np.where(np.arange(sample.lung.shape[1]) <= (columns[0] + columns[-1]) / 2, np.uint8(3), np.uint8(4))
        lungs = (f"seg-lungs-LUNA16/{sample.name}.mhd", sample.lung * sides)
        for name, plane in ((names.image, sample.image), (names.label, sample.label), lungs):
            files += write_metaimage(out, name, plane[None], sample.affine, comment=sample.descrip)
        written.append(names)
    return written, files


def _png(samples: Sequence[ExportedSample], out: Path, shard: str) -> tuple[list[Written], list[str]]:
    written = [Written(f"images/{sample.name}.png", f"masks/{sample.name}.png") for sample in samples]
    for sample, names in zip(samples, written, strict=True):
        write_bytes(out / names.label, _png_bytes(sample.label))
        write_bytes(out / names.image, _png_bytes(DISPLAY_WINDOW.to_grey(sample.image)))
    return written, _flat(written)


def _dicom(samples: Sequence[ExportedSample], out: Path, shard: str) -> tuple[list[Written], list[str]]:
    from lungsynth.ct.write_dicom import SyntheticScan, synthetic_ct, synthetic_seg, write_dicom

    written = [Written(f"{sample.recipe}/{sample.name}/ct.dcm", "") for sample in samples]
    written = [Written(names.image, names.image.replace("ct.dcm", "seg.dcm")) for names in written]
    for sample, names in zip(samples, written, strict=True):
        scan = SyntheticScan(
            subject=sample.recipe,
            name=sample.name,
            derivation=f"lungsynth recipe {sample.recipe}: nodules laid on a lung slice. Synthetic, no patient.",
            day=sample.day,
        )
        image = synthetic_ct(sample.image, sample.affine, scan)
        write_dicom(out / names.label, synthetic_seg(image, sample.lung, sample.nodules, sample.categories, scan))
        write_dicom(out / names.image, image)
    return written, _flat(written)


def _webdataset(samples: Sequence[ExportedSample], out: Path, shard: str) -> tuple[list[Written], list[str]]:
    file = f"shards/{shard}.tar"
    with replacing(out / file) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            facts = {key: value for key, value in sample.facts().items() if key != "runs"}
            _add(tar, f"{sample.name}.image.npy", _npy_bytes(sample.image))
            _add(tar, f"{sample.name}.json", json.dumps(facts, sort_keys=True).encode())
            _add(tar, f"{sample.name}.mask.npy", _npy_bytes(sample.label))
    members = [Written(f"{file}#{s.name}.image.npy", f"{file}#{s.name}.mask.npy") for s in samples]
    return members, [file]


def _zarr(samples: Sequence[ExportedSample], out: Path, shard: str) -> tuple[list[Written], list[str]]:
    """A group a shard and, in it, one a grid (`512x512`) with `image` and `mask` (N, H, W), a chunk a sample."""
    zarr = _need_zarr()
    name, written = f"parts/{shard}.zarr", {}
    temporary = out / f"parts/.{shard}.{uuid4().hex}.zarr.tmp"
    root = zarr.open_group(temporary, mode="w", zarr_format=3, attributes={"synthetic": "lungsynth"})
    by_grid = sorted(samples, key=lambda sample: sample.image.shape)  # stable: the catalogue's order within a grid
    for (height, width), same in groupby(by_grid, key=lambda sample: sample.image.shape):
        members, grid = list(same), f"{height}x{width}"
        facts = [{k: v for k, v in sample.facts().items() if k != "runs"} for sample in members]
        group = root.create_group(grid, attributes={"samples": facts})
        for key, planes in (("image", [s.image for s in members]), ("mask", [s.label for s in members])):
            array = np.stack(planes)
            group.create_array(key, data=array, chunks=(1, height, width), shards=array.shape)
        for index, sample in enumerate(members):
            paths = (f"{name}#{grid}/{key}/{index}" for key in ("image", "mask"))
            written[sample.name] = Written(*paths)
    _replace_folder(temporary, out / name)
    files = sorted(path.relative_to(out).as_posix() for path in (out / name).rglob("*") if path.is_file())
    return [written[sample.name] for sample in samples], files


def _replace_folder(temporary: Path, folder: Path) -> None:
    """A folder takes the place of another; of two runs that write the same one, the second keeps the first's."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(temporary, ignore_errors=True)


def _need_zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise InputError("Writing Zarr needs zarr. Install it with: pip install 'lungsynth[shards]'") from error
    return zarr


def _need_highdicom() -> None:
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError("Writing DICOM needs highdicom. Install it with: pip install 'lungsynth[dicom]'") from error


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: down the columns, beginning with background."""
    values = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(values[1:] != values[:-1])
    ends = np.concatenate([changes, [mask.size]]) if not len(changes) or changes[-1] != mask.size else changes
    return np.diff(ends, prepend=0).astype(int).tolist()


def _flat(written: Iterable[Written]) -> list[str]:
    return [name for names in written for name in names]


def _png_bytes(grey: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="png")
    return buffer.getvalue()


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # A TarInfo of its own has no time, owner or group of this machine.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


FORMATS = {
    "nifti": Format(write=_nifti_in("images/{}.nii.gz", "masks/{}.nii.gz"), shard_size=64),
    "nnunet": Format(
        write=_nifti_in("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"), shard_size=64, write_lists=write_nnunet
    ),
    "msd": Format(write=_nifti_in("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz"), shard_size=64, write_lists=write_msd),
    "luna16": Format(write=_luna16, shard_size=64, by_part=True),
    "dicom": Format(write=_dicom, shard_size=32, check=_need_highdicom),
    "png": Format(write=_png, shard_size=64),
    "webdataset": Format(write=_webdataset, shard_size=256, one_file=True),
    "zarr": Format(write=_zarr, shard_size=256, one_file=True, check=_need_zarr),
}
