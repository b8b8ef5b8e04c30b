"""NIfTI and MetaImage files as images with their masks.

What a file is, its values say first (`lungsynth.ct.file_kinds`); which mask belongs to which image, `pairing`. Images
that are copies of each other are one, with the masks of all.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lungsynth.ct.file_kinds import (
    FileReport,
    explain_labels,
    mask_of,
    read_dataset_json,
    structure_of,
    unexplained,
)
from lungsynth.ct.metaimage import read_metaimage
from lungsynth.ct.nifti import read_nifti
from lungsynth.ct.pairing import (
    ImageIndex,
    ImageName,
    Match,
    bare_stem,
    image_name,
    is_other_channel,
    says_mask,
    volume_stem,
)
from lungsynth.ct.series import MaskFile, Problem
from lungsynth.ct.source_files import SourceFiles, as_text
from lungsynth.ct.values import Values, is_nifti, look_at
from lungsynth.errors import InputError

__all__ = ["VolumeFiles", "VolumeImage", "sort_volumes"]

_OWN_DESCRIPTION = "synthetic: lungsynth"  # what `lungsynth.export` writes into headers
_OWN_LABELS = {1: "lung", 2: "nodule", 255: "unlabelled"}


@dataclass(frozen=True, kw_only=True)
class VolumeImage:
    """An image in one file.

    Args:
        path: the file.
        series_id: its name without what says that it is an image; unique.
        says_ct: its name or folder says that it is an image, so that the rest of it names a patient.
        synthetic: this project made it.
    """

    path: Path
    series_id: str
    says_ct: bool
    synthetic: bool


@dataclass
class VolumeFiles:
    """NIfTI and MetaImage files, sorted.

    Args:
        images: each scan once.
        masks: by the file of their image, or by the id of a DICOM series.
        unread: likewise, masks that could not be used.
        refused: likewise, scans whose masks cannot be trusted.
        pixels: data files of MetaImage headers.
        jsons: dataset.json that were read.
        index: the images, to be asked whose mask a file is.
        problems: in sentences.
        reports: of all files but dataset.json.
    """

    images: list[VolumeImage] = field(default_factory=list)
    masks: dict[object, list[MaskFile]] = field(default_factory=lambda: defaultdict(list))
    unread: dict[object, list[Path]] = field(default_factory=lambda: defaultdict(list))
    refused: set[object] = field(default_factory=set)
    pixels: set[Path] = field(default_factory=set)
    jsons: set[Path] = field(default_factory=set)
    index: ImageIndex = field(default_factory=lambda: ImageIndex(()))
    problems: list[Problem] = field(default_factory=list)
    reports: list[FileReport] = field(default_factory=list)

    @property
    def synthetic(self) -> list[Path]:
        """Images that this project made."""
        return [image.path for image in self.images if image.synthetic]


def sort_volumes(
    paths: Sequence[Path],
    series: Iterable[ImageName],
    jsons: Sequence[Path],
    files: SourceFiles,
    *,
    labels: Mapping[int, str],
) -> VolumeFiles:
    """Sorts NIfTI and MetaImage files into images and masks.

    Args:
        paths: the files.
        series: DICOM series, which may have masks too.
        jsons: files called dataset.json.
        files: of the sources, for names.
        labels: what a user says of the values of label files.
    """
    return _Volumes(files, jsons, labels).sort(paths, series)


class _Volumes:
    """One pass over the volumes."""

    def __init__(self, files: SourceFiles, jsons: Sequence[Path], labels: Mapping[int, str]) -> None:
        self.files, self.labels, self.roots = files, labels, files.roots
        self.found = VolumeFiles()
        self.values: dict[Path, Values | None] = {}
        self.unreadable: dict[Path, str] = {}
        self.named: dict[Path, dict[int, str]] = {}  # by the folder of a dataset.json
        for path in jsons:
            try:
                names = read_dataset_json(path)
            except InputError as error:
                self._problem(path, str(error).replace(f"{path}: ", ""))
                self.found.jsons.add(path)
                continue
            if names is not None:
                self.named[path.parent] = names
                self.found.jsons.add(path)
                self._report(path, "names of label values", ", ".join(f"{v} {n}" for v, n in sorted(names.items())))

    def sort(self, paths: Sequence[Path], series: Iterable[ImageName]) -> VolumeFiles:
        for path in tqdm(paths, desc="Looking at volumes", unit="file", disable=None, leave=False):
            self.found.pixels |= _data_files(path)
            try:
                self.values[path] = look_at(path)
            except InputError as error:
                self.values[path] = None
                self.unreadable[path] = str(error).replace(str(path), self.files.shown(path))
        images = [path for path in paths if self._is_image(path)]
        index = self.found.index = ImageIndex([*(image_name(path, path) for path in images), *series])
        for path in paths:
            if path not in set(images):
                self._pair(path, index)
        self._add_images(self._once(images))
        return self.found

    def _problem(self, path: Path, why: str) -> None:
        self.found.problems.append(Problem(path, f"{self.files.shown(path)}: {why}"))
        self._report(path, "nothing", why)

    def _report(self, path: Path, taken_for: str, why: str) -> None:
        self.found.reports.append(FileReport(name=self.files.shown(path), taken_for=taken_for, why=why))

    def _is_image(self, path: Path) -> bool:
        values = self.values[path]
        if values is not None and values.in_hu:
            return True
        if values is not None and values.labels:
            return False
        return not says_mask(path, self.roots)

    def _once(self, images: Sequence[Path]) -> list[Path]:
        """The images without copies of others; what belonged to a copy belongs to the image that is kept."""
        groups: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            values = self.values[path]
            groups[str(path) if values is None else values.fingerprint].append(path)
        kept: list[Path] = []
        for group in groups.values():
            own: list[Path] = []
            for path in sorted(group, key=lambda one: (-len(self.found.masks.get(one, ())), self.files.shown(one))):
                twin = next((one for one in own if _are_equal(one, path)), None)
                if twin is None:
                    own.append(path)
                else:
                    self._join(path, twin)
            kept += own
        return [path for path in images if path in set(kept)]

    def _join(self, copy: Path, kept: Path) -> None:
        self._report(copy, "not used", f"a copy of {self.files.shown(kept)}: the same scan is read once")
        masks = self.found.masks
        has_lung, has_nodule = (any(getattr(mask, kind) for mask in masks[kept]) for kind in ("lung", "nodule"))
        for mask in masks.pop(copy, []):
            if not ((mask.lung and has_lung) or (mask.nodule and has_nodule)):
                masks[kept].append(mask)
        self.found.unread[kept] += self.found.unread.pop(copy, [])
        if copy in self.found.refused:
            self.found.refused.add(kept)

    def _add_images(self, images: Sequence[Path]) -> None:
        names = {path: _series_name(path) for path in images}
        for longer in (
            lambda path: f"{path.parent.name}_{_series_name(path)}",
            lambda path: self.files.shown(path).replace("/", "_"),
        ):
            counts = Counter(names.values())
            names = {path: longer(path) if counts[name] > 1 else name for path, name in names.items()}
        for path in images:
            stem = volume_stem(path)
            says_ct = bare_stem(stem) != stem or path.parent.name.lower().startswith("images")
            name, synthetic = as_text(names[path]), self._is_ours(path)
            self.found.images.append(VolumeImage(path=path, series_id=name, says_ct=says_ct, synthetic=synthetic))
            told = f"synthetic CT, series {name}" if synthetic else f"CT, series {name}"
            values = self.values[path]
            why = _why_image(values) if values is not None else f"its name; {self.unreadable[path]}"
            self._report(path, told, why)

    def _is_ours(self, path: Path) -> bool:
        values = self.values[path]
        return values is not None and values.description.startswith(_OWN_DESCRIPTION)

    def _pair(self, path: Path, index: ImageIndex) -> None:
        """Takes a mask: for its image, or as a problem."""
        if is_other_channel(path):
            self._report(path, "not used", "another channel than nnU-Net's first")
            return
        match = index.match(path)
        values = self.values[path]
        if match.whose is None:
            what = "it fits several images equally well" if match.several else "no image of its name is in the sources"
            self._problem(
                path, f"a mask without an image: {what}. Call it like its image (X_nodule.nii.gz), or remove it."
            )
        elif values is not None and values.labels is None:
            why = (
                f"called a mask, but its values ({values.low:g} to {values.high:g}) are no labels. Threshold it first; "
                "none of the slices of its scan counts as normal."
            )
            self._problem(path, why)
            self.found.unread[match.whose].append(path)
        else:
            self._take(path, match, () if values is None else values.labels or ())

    def _take(self, path: Path, match: Match, values: tuple[int, ...]) -> None:
        try:
            mask, why = self._meaning(path, match, values)
        except InputError as error:
            self._problem(path, str(error).replace(f"{path}: ", ""))
            self.found.refused.add(match.whose)
            return
        if mask is None:
            told = (
                "a mask, but nothing says what it marks: it is not used, and none of the slices of its scan counts as "
                "normal. Call it X_lung or X_nodule, or name its values (`--labels 1=nodule`)."
            )
            self._problem(path, told)
            self.found.unread[match.whose].append(path)
            return
        self.found.masks[match.whose].append(mask)
        kinds = [kind for kind in ("lung", "nodule", "finding") if getattr(mask, kind)]
        self._report(path, f"mask ({', '.join(kinds)})" if kinds else "not used", why if kinds else f"{why}: anatomy")

    def _meaning(self, path: Path, match: Match, values: tuple[int, ...]) -> tuple[MaskFile | None, str]:
        """What a mask marks, and which rule said so; None when none does."""
        own = structure_of(match.rest)
        names, source = self._names_for(path)
        if names and (len(values) > 1 or own is None):
            return explain_labels(path, values, names, source=source), f"values: labels; {source}"
        if own is not None:
            return mask_of(path, values, own), "values: labels; its own name"
        inside = next((depth for depth, folder in enumerate(path.parents, 1) if folder in self.roots), 0)
        for folder in match.folders[:inside]:
            if folder.lower().startswith("labels") and len(values) <= 1:
                return mask_of(path, values, "nodule"), f"values: labels; folder {folder} (Decathlon, nnU-Net)"
            if (structure := structure_of(folder)) is not None:
                return mask_of(path, values, structure), f"values: labels; folder {folder}"
        if len(values) > 1:
            raise unexplained(path, values)
        return None, ""

    def _names_for(self, path: Path) -> tuple[Mapping[int, str], str]:
        """What a user or a dataset.json says of the values of a mask."""
        if self._is_ours(path):
            return _OWN_LABELS, "this project"
        if self.labels:
            return self.labels, "the option `labels`"
        for folder in path.parents:
            if folder in self.named:
                return self.named[folder], "dataset.json"
            if folder in self.roots:
                break
        in_labels = any(folder.name.lower().startswith("labels") for folder in path.parents)
        if in_labels and len(self.named) == 1:
            return next(iter(self.named.values())), "dataset.json"
        beside = path.parent.parent / "dataset.json"
        if path.parent in self.roots and in_labels and beside.is_file():  # SOURCE is the folder of labels itself
            return read_dataset_json(beside) or {}, "dataset.json"
        return {}, ""


def _series_name(path: Path) -> str:
    return bare_stem(volume_stem(path)) or path.parent.name


def _why_image(values: Values) -> str:
    return "values: HU" if values.in_hu else f"its name; values {values.low:g} to {values.high:g}"


def _data_files(path: Path) -> set[Path]:
    """The files of pixels that a MetaImage header names, as far as one can tell at a glance."""
    if is_nifti(path):
        return set()
    found = {path.with_suffix(suffix).resolve() for suffix in (".raw", ".zraw")}
    try:
        with path.open("rb") as stream:
            head = stream.read(1 << 14)
        named = re.search(rb"^ElementDataFile\s*=\s*([^\r\n]+)", head, re.MULTILINE)
        if named is not None and b"\0" not in named[1]:
            found.add((path.parent / named[1].strip().decode("utf-8", "surrogateescape")).resolve())
    except (OSError, ValueError):
        pass
    return found


def _are_equal(one: Path, other: Path) -> bool:
    """Whether two images of one grid and one beginning are the same to their ends."""
    if one.stat().st_size == other.stat().st_size and is_nifti(one) and one.read_bytes() == other.read_bytes():
        return True
    try:
        first, second = (read_nifti(path)[0] if is_nifti(path) else read_metaimage(path)[0] for path in (one, other))
    except InputError:
        return False
    return bool(np.array_equal(first, second))
