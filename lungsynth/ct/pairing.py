"""Which NIfTI and MetaImage files are CT and which are their masks, from the names of files and folders.

| layout | CT | lung mask | nodule mask |
|---|---|---|---|
| beside | `X_ct.nii.gz` or `X.nii.gz` | `X_lung.nii.gz` | `X_nodule.nii.gz` |
| a folder a patient | `X/ct.nii.gz` | `X/lung.nii.gz` | `X/nodule.nii.gz` |
| Medical Segmentation Decathlon, nnU-Net | `imagesTr/X.nii.gz`, `imagesTr/X_0000.nii.gz` | | `labelsTr/X.nii.gz` |
| LUNA16 | `subset0/X.mhd` | `seg-lungs-LUNA16/X.mhd` | |

Other masks (`X_mask`, `X_votes4`, a folder `masks`) are neither: nobody says what they mark.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["VolumeFiles", "pair_volumes", "patient_folder"]

_SUFFIX = re.compile(r"(\.nii\.gz|\.nii|\.mhd|\.mha)$", re.IGNORECASE)
_ROLE = re.compile(
    r"(?:^|[_-])(?:(?P<ct>ct|0000)|(?P<lung>lungs?|lung[_-]?mask)|(?P<nodule>(?:nodules?|tumou?rs?|lesions?|gtv)(?:[_-]?mask)?)"
    r"|(?P<other>votes?\d*|masks?|seg|segmentation|labels?))$",
    re.IGNORECASE,
)
_PLAIN_NAMES = {"", "ct", "image", "img", "volume", "scan", "imaging"}
_PATIENT_FOLDER = re.compile(r"^[A-Za-z][\w.-]*[-_]\d{3,}$")
_Role = Literal["ct", "lung", "nodule", "other"]


@dataclass(frozen=True, kw_only=True)
class VolumeFiles:
    """A CT in one file and its masks; `named` tells whether its layout names patients."""

    path: Path
    series_id: str
    named: bool
    lung_mask: Path | None
    nodule_mask: Path | None


def pair_volumes(paths: Iterable[Path]) -> list[VolumeFiles]:
    """Finds the CT files among NIfTI and MetaImage files, and the masks of each.

    Args:
        paths: NIfTI and MetaImage headers of one source.
    """
    volumes = [(path, *_stem_and_role(path)) for path in paths]
    masks: dict[tuple[str, str, str], Path] = {
        (role, *key): path for path, stem, role in volumes for key in _mask_keys(path, stem) if role != "ct"
    }
    return [_with_masks(path, stem, masks) for path, stem, role in volumes if role == "ct"]


def patient_folder(path: Path, roots: Collection[Path]) -> str | None:
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


def _stem_and_role(path: Path) -> tuple[str, _Role]:
    stem = _SUFFIX.sub("", path.name)
    match = _ROLE.search(stem)
    folder = path.parent.name.lower()
    if folder.startswith("labels"):
        return stem, "nodule"
    if "lung" in folder and ("seg" in folder or "mask" in folder):
        return stem, "lung"
    if folder in ("masks", "mask", "segmentations", "seg"):
        return stem, "other"
    if match is None:
        return stem, "ct"
    bare = stem[: match.start()]
    roles: tuple[_Role, ...] = ("ct", "lung", "nodule", "other")
    return bare, next(role for role in roles if match[role])


def _mask_keys(path: Path, stem: str) -> list[tuple[str, str]]:
    """What a CT must have in common with a mask: its folder, or the place that the mask's folder stands for."""
    folder = path.parent.name
    if folder.lower().startswith("labels"):
        return [(str(path.parent.parent / ("images" + folder[len("labels") :])), stem)]
    if "lung" in folder.lower() and ("seg" in folder.lower() or "mask" in folder.lower()):
        return [("", stem)]
    return [(str(path.parent), stem)]


def _with_masks(path: Path, stem: str, masks: dict[tuple[str, str, str], Path]) -> VolumeFiles:
    plain = stem.lower() in _PLAIN_NAMES
    own_stem = _SUFFIX.sub("", path.name)
    folder, masks_by_role = str(path.parent), {}
    for role in ("lung", "nodule"):
        keys = (
            ((role, folder, stem), (role, folder, ""), (role, "", stem))
            if plain
            else ((role, folder, stem), (role, "", stem))
        )
        masks_by_role[role] = next((masks[key] for key in keys if key in masks), None)
    return VolumeFiles(
        path=path,
        series_id=path.parent.name if plain else stem,
        named=plain or own_stem != stem or path.parent.name.lower().startswith("images"),
        lung_mask=masks_by_role["lung"],
        nodule_mask=masks_by_role["nodule"],
    )
