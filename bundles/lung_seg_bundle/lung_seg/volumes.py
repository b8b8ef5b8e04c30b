# SPDX-License-Identifier: Apache-2.0
"""What to segment: the CT volumes of a folder. What cannot be read is put on record and does not stop the others."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk  # noqa: N813
from torch.utils.data import IterableDataset

__all__ = ["Problems", "ReadableVolumes", "list_volumes", "name_of"]

logger = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha")
MAGIC = (128, b"DICM")


def list_volumes(dataset_dir: str | Path | None, datalist: Sequence[str | Path] | None = None) -> list[dict[str, str]]:
    """Volumes and slices to segment, by name; whether they can be read is seen later.

    Args:
        dataset_dir: folder of `.nii`, `.nii.gz`, `.mhd` and `.mha` files, and of DICOM series at any depth.
        datalist: the files and folders themselves, relative to `dataset_dir` or absolute; instead of all of the folder.

    Returns:
        One dict a volume: `image` (path), `name` (unique; names the outputs) and, for DICOM, `series`.

    Raises:
        ValueError: when nothing is found.
    """
    root = Path(str(dataset_dir or "."))
    if datalist is not None:
        chosen = [datalist] if isinstance(datalist, str | Path) else datalist
        places = [root / path for path in chosen]
    else:
        places = [root] if dataset_dir is not None and root.exists() else []
    entries = [entry for place in places for entry in _entries(place, root)]
    if not entries:
        raise ValueError(
            f"Expected CT volumes (.nii, .nii.gz, .mhd, .mha or DICOM series) in dataset_dir={dataset_dir}, "
            "found none. Give --dataset_dir FOLDER, or --datalist with the files."
        )
    return _with_unique_names(entries)


def _entries(place: Path, root: Path) -> list[dict[str, str]]:
    if not place.is_dir():
        return [{"image": str(place), "name": name_of(place)}]
    files = sorted(path for path in place.iterdir() if path.is_file() and path.name.endswith(SUFFIXES))
    found = [{"image": str(path), "name": name_of(path)} for path in files]
    for folder in sorted({place, *(path for path in place.rglob("*") if path.is_dir())}):
        if _holds_dicom(folder):
            name = "_".join(folder.relative_to(root).parts) if folder.is_relative_to(root) else folder.name
            series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
            found += [{"image": str(folder), "name": name or folder.resolve().name, "series": uid} for uid in series]
    return found


def _holds_dicom(folder: Path) -> bool:
    return any(_is_dicom(path) for path in sorted(folder.iterdir()) if path.is_file())


def _is_dicom(path: Path) -> bool:
    if path.name.endswith(SUFFIXES):
        return False
    with path.open("rb") as file:
        file.seek(MAGIC[0])
        return file.read(len(MAGIC[1])) == MAGIC[1]


def _with_unique_names(entries: list[dict[str, str]]) -> list[dict[str, str]]:
    """Gives equal names a number, in their order."""
    names = [entry["name"] for entry in entries]
    total = {name: names.count(name) for name in names}
    seen: dict[str, int] = {}
    for entry in entries:
        name = entry["name"]
        seen[name] = seen.get(name, 0) + 1
        if total[name] > 1:
            entry["name"] = f"{name}_{seen[name]}"
    return entries


def name_of(path: str | Path) -> str:
    """A file's name without the ending of its format."""
    name = Path(path).name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


class Problems:
    """What went wrong with which volume."""

    def __init__(self) -> None:
        self.by_name: dict[str, str] = {}

    def add(self, name: str, error: Exception) -> None:
        """Puts an error on record and says so."""
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)  # MONAI wraps what a transform raises
        told = next((cause for cause in causes if isinstance(cause, ValueError)), causes[-1])
        self.by_name[name] = str(told)
        logger.error("%s is left out: %s", name, told)

    def report(self, done: int) -> None:
        """Says at the end what was left out.

        Args:
            done: how many volumes were segmented.

        Raises:
            ValueError: when none was.
        """
        for name, reason in self.by_name.items():
            logger.error("Left out: %s: %s", name, reason)
        if self.by_name and not done:
            raise ValueError(f"None of {len(self.by_name)} volumes could be segmented; the log says why.")


class ReadableVolumes(IterableDataset):
    """The volumes that can be read, one after the other.

    Args:
        data: from `list_volumes`.
        transform: reads and prepares one.
        problems: where those are put on record that it refuses.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Mapping[str, Any]], dict[str, Any]],
        problems: Problems,
    ) -> None:
        self.data = data
        self.transform = transform
        self.problems = problems

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for entry in self.data:
            try:
                ready = self.transform(entry)
            except (ValueError, RuntimeError, OSError) as error:
                self.problems.add(entry["name"], error)
                continue
            yield ready
