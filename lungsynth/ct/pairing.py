"""Which mask belongs to which image, from the names of files and folders over all sources.

An image is known by its key: the words of its name without those that only say "image" (`X_ct`, `volume-3`,
`X_0000`), or its folder's name where nothing else is left (`X/ct.nii.gz`); a DICOM series by its UID and its patient's
id. A mask belongs to the image whose key its own name holds, whole words in a row; an image of the same folder, or of
the `images` folder beside its `labels` folder, goes before others, then the longest key, then the nearest folder. A
mask whose name only says what it marks belongs to the only image below the nearest folder above it
(`X/segmentations/lobe.nii.gz`). What is left of its name, and the folders that the image does not share, say what it
marks. Masks that fit several images equally well belong to none.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from lungsynth.ct.file_kinds import CT_WORDS, structure_of

__all__ = [
    "ImageIndex",
    "ImageName",
    "Match",
    "bare_stem",
    "image_name",
    "is_other_channel",
    "patient_folder",
    "says_mask",
    "volume_stem",
]

_SUFFIX = re.compile(r"(\.nii\.gz|\.nii|\.mhd|\.mha)$", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+|\d+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_CHANNEL = "0000"  # nnU-Net's first channel
# Words that say that a file marks something, and words that only say how.
_LOUD_MASK_WORDS = {
    "mask", "masks", "seg", "segs", "segm", "segmentation", "segmentations", "label", "labels", "labelmap", "gt",
    "annotation", "annotations", "roi", "rois", "votes", "vote", "binary",
}  # fmt: skip
_MASK_WORDS = _LOUD_MASK_WORDS | {
    "left", "right", "upper", "lower", "middle", "l", "r", "both", "all", "final", "manual", "expert", "consensus",
    "of", "the", "and", "truth",
}  # fmt: skip
_PATIENT_FOLDER = re.compile(r"^[A-Za-z][\w.-]*[-_]\d{3,}$")

Words = tuple[str, ...]


@dataclass(frozen=True)
class ImageName:
    """What an image is known by.

    Args:
        place: its folder.
        keys: words in a row, each of which names it.
        plain: its file name says only that it is an image, or it is of DICOM.
        whose: what the caller knows it by.
    """

    place: Path
    keys: tuple[Words, ...]
    plain: bool
    whose: object


@dataclass(frozen=True)
class Match:
    """The image of a mask, and what its name and folders say beyond it.

    Args:
        whose: as the image's `whose`; None when there is none, or several fit equally well.
        rest: of its name, in words.
        folders: that the image does not share, nearest first.
        several: whether several fit equally well.
    """

    whose: object | None
    rest: str
    folders: tuple[str, ...]
    several: bool = False


def volume_stem(path: Path) -> str:
    """The name of a NIfTI or MetaImage file without its suffix."""
    return _SUFFIX.sub("", path.name)


def bare_stem(stem: str) -> str:
    """A stem without the words at its end that only say "image", such as `_ct` and `_0000`; may be empty."""
    pieces = re.split(r"([_\-. ]+)", stem)
    while pieces and (pieces[-1].lower() in CT_WORDS or pieces[-1] == _CHANNEL):
        pieces = pieces[:-2]
    return "".join(pieces)


def words_of(text: str) -> Words:
    """The words and numbers of a name."""
    return tuple(_WORD.findall(_HUMP.sub(" ", unicodedata.normalize("NFC", text)).lower()))


def image_name(path: Path, whose: object, others: Iterable[str] = ()) -> ImageName:
    """What the image in a file is known by.

    Args:
        path: the file, or a slice of the series.
        whose: given back by `match_mask`.
        others: further names of it; where there are any, the file's own name counts for nothing (slices of DICOM).
    """
    named = [words_of(other) for other in others]
    if named:
        return ImageName(place=path.parent, keys=tuple(key for key in named if key), plain=True, whose=whose)
    words = _without_image_words(words_of(volume_stem(path)))
    keys = (words,) if words else (words_of(path.parent.name),)
    return ImageName(place=path.parent, keys=tuple(key for key in keys if key), plain=not words, whose=whose)


def _without_image_words(words: Words) -> Words:
    start, stop = 0, len(words)
    while stop > start and (words[stop - 1] in CT_WORDS or words[stop - 1] == _CHANNEL):
        stop -= 1
    while start < stop and words[start] in CT_WORDS:
        start += 1
    return words[start:stop]


class ImageIndex:
    """The images of all sources, to be asked for each mask."""

    def __init__(self, images: Iterable[ImageName]) -> None:
        self._by_key: dict[Words, list[ImageName]] = {}
        self._below: dict[Path, list[ImageName]] = {}
        for image in images:
            for key in set(image.keys):
                self._by_key.setdefault(key, []).append(image)
            for folder in (image.place, *image.place.parents):
                self._below.setdefault(folder, []).append(image)

    def match(self, path: Path) -> Match:
        """Finds the image of a mask."""
        words = words_of(volume_stem(path))
        spans = [(a, b) for a in range(len(words)) for b in range(a + 1, len(words) + 1)]
        found = [
            (_rank(path, image, b - a), (a, b), image)
            for a, b in spans
            for image in self._by_key.get(words[a:b], ())
            if _tells(words, a, b) or _near(path, image)
        ]
        if not found:
            return self._by_folder(path, words)
        best = min(rank for rank, _, _ in found)
        fitting = [(span, image) for rank, span, image in found if rank == best]
        if len({image.whose for _, image in fitting}) > 1:
            return Match(whose=None, rest=" ".join(words), folders=(), several=True)
        (start, stop), image = fitting[0]
        rest = " ".join((*words[:start], *words[stop:]))
        return Match(whose=image.whose, rest=rest, folders=_own_folders(path, image.place))

    def _by_folder(self, path: Path, words: Words) -> Match:
        """The only image below the nearest folder that has any, for a name that says nothing but what it marks."""
        rest = " ".join(words)
        images = next((self._below[folder] for folder in path.parents if folder in self._below), [])
        if not images or not images[0].plain or not _only_marks(words):
            return Match(whose=None, rest=rest, folders=())
        if len({image.whose for image in images}) > 1:
            return Match(whose=None, rest=rest, folders=(), several=True)
        return Match(whose=images[0].whose, rest=rest, folders=_own_folders(path, images[0].place))


def _only_marks(words: Words) -> bool:
    return all(word.isdigit() or word in _MASK_WORDS or structure_of(word) for word in words)


def _tells(words: Words, start: int, stop: int) -> bool:
    """Whether a key is enough to find an image in another folder: a bare number is not, unless all else is of masks."""
    lone_number = stop - start == 1 and words[start].isdigit() and len(words[start]) < 6
    return not lone_number or _only_marks((*words[:start], *words[stop:]))


def _rank(path: Path, image: ImageName, length: int) -> tuple[int, int, int]:
    """Smaller fits better."""
    return (0 if _near(path, image) else 1, -length, _steps(path.parent, image.place))


def _near(path: Path, image: ImageName) -> bool:
    if image.place in (path.parent, *path.parents) and (image.plain or image.place == path.parent):
        return True
    twin = _twin_folder(path.parent)
    return twin is not None and image.place == twin


def _twin_folder(folder: Path) -> Path | None:
    """`imagesTr` for `labelsTr`."""
    name = folder.name
    return folder.with_name("images" + name[len("labels") :]) if name.lower().startswith("labels") else None


def _steps(one: Path, other: Path) -> int:
    """Folders between two folders."""
    shared = 0
    for left, right in zip(one.parts, other.parts, strict=False):
        if left != right:
            break
        shared += 1
    return len(one.parts) + len(other.parts) - 2 * shared


def _own_folders(path: Path, place: Path) -> tuple[str, ...]:
    shared = {*place.parents, place}
    return tuple(folder.name for folder in path.parents if folder not in shared)


def is_other_channel(path: Path) -> bool:
    """Whether a file is nnU-Net's second channel, or a later one, of a case that has a first."""
    found = re.fullmatch(r"(.*_)000[1-9](\.nii\.gz|\.nii|\.mhd|\.mha)", path.name, re.IGNORECASE)
    return found is not None and path.with_name(f"{found[1]}{_CHANNEL}{found[2]}").exists()


def says_mask(path: Path, roots: Collection[Path]) -> bool:
    """Whether the name of a file, or of its folder, says that it is a mask; for files whose values do not tell."""
    words = words_of(volume_stem(path))
    if words and words[-1] in CT_WORDS:
        return False
    folder = path.parent.name.lower()
    if folder.startswith("labels") or any(word in _MASK_WORDS and not word.isdigit() for word in words_of(folder)):
        return True
    return any(word in _LOUD_MASK_WORDS or (structure_of(word) and word != "lung") for word in words) or (
        len(words) > 1 and words[-1] in ("lung", "lungs")
    )


def patient_folder(path: Path, roots: Iterable[Path]) -> str | None:
    """The nearest folder above a file whose name is a patient's, such as LIDC-IDRI-0001; None without one.

    Args:
        path: the file.
        roots: where the search ends: folders above a source say nothing of its patients.
    """
    for folder in path.parents:
        if _PATIENT_FOLDER.match(folder.name):
            return folder.name
        if folder in roots:
            break
    return None
