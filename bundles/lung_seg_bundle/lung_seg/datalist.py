# SPDX-License-Identifier: Apache-2.0
"""What to read: the parts of a COHORT's `segmentation.json`, and labelled slices of another list beside them.

An entry of kind `slice` is an axial slice with its label map; entries of kind `nodule` (npz files of 64 x 64 crops) are
gathered, since a crop is small: one sample shows several nodules side by side (see `transforms.py`). Kind `ball` is
the same of a nodule whose outline nobody drew (LUNA16): what is dense in the ball of its diameter stands for it, in a
training that asks for it. Its scan's slices need no kind of their own: composites make them labelled for both channels,
as they do all slices with lungs, and their label maps know the balls.
"""

import hashlib
import json
import logging
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import CHANNELS
from .stacks import mask_votes, open_nodule

__all__ = ["describe_extra", "nodule_files", "nodule_weights", "read_datalist", "read_extra"]

logger = logging.getLogger(__name__)

FILE_NAME = "segmentation.json"
NODULES_NAME = "nodules.json"


def read_datalist(
    dataset_dir: str | Path | None,
    part: str,
    *,
    nodules_per_sample: int = 9,
    limit: int | None = None,
    extra: str | Path | None = None,
    balance: float = 0.0,
    balls: bool = False,
    max_slices: int | None = None,
    needs_nodules: bool = False,
) -> list[dict[str, Any]]:
    """Samples of one part of a COHORT.

    Args:
        dataset_dir: the COHORT.
        part: `training`, `validation` or `test`.
        nodules_per_sample: how many nodules stand side by side in a sample of kind `nodule`.
        limit: keep at most so many samples, evenly spread over the part.
        extra: a MONAI data list with slices whose lungs and nodules are all labelled, such as the `datalist.json` of a
            synthetic set; they stand behind the others, and `limit` does not count them.
        balance: of categories among nodules, see `nodule_weights`.
        balls: whether entries of kind `ball` count like those of kind `nodule`.
        max_slices: keep at most so many slices, evenly spread over the part; nodules are all kept.
        needs_nodules: refuse a part without a nodule to learn from, unless there is `extra`.

    Returns:
        One dict a sample: `kind`, `labelled` (two numbers, lung and nodule: 1 where an expert drew it), `weight` (how
        often it is shown among its kind), `extra` (whether it is one of `extra`), and `image` and `label` (kind
        `slice`) or `nodules` (kind `nodule`, paths of npz files). Nodules of about one size stand together (of one
        category, where these are balanced), and are shown in proportion to it: large ones are rare.

    Raises:
        ValueError: when the COHORT, the part, the extra list or nodules are not there, or files of it are missing.
    """
    entries = _read_part(dataset_dir, part)
    root = Path(str(dataset_dir))
    if needs_nodules and not extra:
        _check_nodules(root / FILE_NAME, part, entries, balls=balls)
    slices = [
        {
            "kind": "slice",
            "image": root / entry["image"],
            "label": root / entry["label"],
            "labelled": _channels(entry["labelled"]),
            "weight": 1.0,
            "extra": False,
        }
        for entry in _spread([entry for entry in entries if entry["kind"] == "slice"], max_slices)
    ]
    sizes, categories = _known(root, part, "diameter_mm"), _known(root, part, "category") if balance else {}
    names = _nodule_names(entries, balls=balls)
    names.sort(key=lambda name: (categories.get(name, ""), sizes.get(name, 1.0), name))
    shares = _balanced([categories.get(name, "") for name in names], balance)
    weights = [sizes.get(name, 1.0) * share for name, share in zip(names, shares, strict=True)]
    nodules = [root / name for name in names]
    _check_files(root / FILE_NAME, [sample[key] for sample in slices for key in ("image", "label")] + nodules)
    gathered = [
        {
            "kind": "nodule",
            "nodules": nodules[start : start + nodules_per_sample],
            "labelled": _channels(["nodule"]),
            "weight": statistics.fmean(weights[start : start + nodules_per_sample]),
            "extra": False,
        }
        for start in range(0, len(nodules), nodules_per_sample)
    ]
    return _spread(slices + gathered, limit) + (read_extra(extra) if extra else [])


def read_extra(path: str | Path) -> list[dict[str, Any]]:
    """Samples of a data list of labelled slices (`training`: `image`, `label`, relative to the list's folder).

    Raises:
        ValueError: when the list is not there, is empty, or names files that are missing.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text())["training"]
        pairs = [(path.parent / entry["image"], path.parent / entry["label"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a data list whose `training` names `image` and `label`, got {error!r}. Give "
            "--extra_datalist the datalist.json of a synthetic set."
        ) from error
    if not pairs:
        raise ValueError(f"{path}: its `training` is empty. Make more samples, or leave out --extra_datalist.")
    _check_files(path, [file for pair in pairs for file in pair])
    both = _channels(CHANNELS)
    return [
        {"kind": "slice", "image": image, "label": label, "labelled": both, "weight": 1.0, "extra": True}
        for image, label in pairs
    ]


def describe_extra(path: str | Path | None) -> dict[str, Any] | None:
    """How many samples a list of extra slices has, and its SHA-256, for the sidecar of the weights; None without one.

    Raises:
        ValueError: see `read_extra`.
    """
    if path is None:
        return None
    return {"samples": len(read_extra(path)), "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def nodule_files(dataset_dir: str | Path | None, part: str, *, balls: bool = False) -> list[Path]:
    """Files of the nodules of a part of a COHORT, for `composites.NoduleBank`; arguments as in `read_datalist`."""
    root = Path(str(dataset_dir))
    files = [root / name for name in _nodule_names(_read_part(dataset_dir, part), balls=balls)]
    _check_files(root / FILE_NAME, files)
    return files


def nodule_weights(dataset_dir: str | Path | None, part: str, *, balance: float, balls: bool = False) -> list[float]:
    """How often each of `nodule_files` is shown, on average 1.

    Args:
        dataset_dir: the COHORT.
        part: as in `read_datalist`.
        balance: 0 shows all alike, 1 all categories (`nodules.json`) alike; between, a category of n nodules has the
            weight n to the power of 1 - balance.
        balls: as in `read_datalist`.
    """
    categories = _known(Path(str(dataset_dir)), part, "category")
    names = _nodule_names(_read_part(dataset_dir, part), balls=balls)
    return _balanced([categories.get(name, "") for name in names], balance)


def _balanced(categories: Sequence[str], balance: float) -> list[float]:
    counts = Counter(categories)
    weights = [counts[category] ** -balance for category in categories]
    mean = statistics.fmean(weights) if weights else 1.0
    return [weight / mean for weight in weights]


def _nodule_names(entries: Sequence[dict[str, Any]], *, balls: bool) -> list[str]:
    kinds = ("nodule", "ball") if balls else ("nodule",)
    return [entry["image"] for entry in entries if entry["kind"] in kinds]


def _spread(items: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """At most so many of them, evenly spread; None: all."""
    if most is None or len(items) <= most:
        return items
    return [items[index * len(items) // most] for index in range(most)]


def _check_nodules(path: Path, part: str, entries: Sequence[dict[str, Any]], *, balls: bool) -> None:
    """Refuses a part that would train the nodule channel on nothing; logs what becomes of nodules known by balls."""
    known = sum(entry["kind"] == "ball" for entry in entries)
    if known:
        said = "train with what is dense in their balls" if balls else "do not train; --balls True lets them"
        logger.info("%s: %d nodules of '%s' have centre and diameter alone and %s.", path, known, part, said)
    drawn = any(entry["kind"] == "slice" and "nodule" in entry["labelled"] for entry in entries)
    crops = (path.parent / name for name in _nodule_names(entries, balls=balls))
    if drawn or any(_has_mask(crop) for crop in crops):
        return
    way = "Give --balls True to train with what is dense in balls of that size, or prepare" if known else "Prepare"
    raise ValueError(
        f"{path}: a training needs nodules that somebody drew (slices, or crops of two readers), but the part '{part}' "
        f"has none, and {known} nodules with centre and diameter alone. {way} a cohort that holds drawn nodules, such "
        "as those of LIDC-IDRI. For a network of lungs alone give --train#dataset#data#needs_nodules False."
    )


def _has_mask(path: Path) -> bool:
    arrays = open_nodule(path, ("votes",))
    return bool(arrays["votes"].max() >= mask_votes(arrays))


def _read_part(dataset_dir: str | Path | None, part: str) -> list[dict[str, Any]]:
    path = Path(str(dataset_dir)) / FILE_NAME
    if dataset_dir is None or not path.is_file():
        raise ValueError(
            f"This needs a COHORT with {FILE_NAME}, got dataset_dir={dataset_dir}. Give --dataset_dir COHORT, "
            "a folder written by scripts/prepare.py."
        )
    entries = json.loads(path.read_text()).get(part) or []
    if not entries:
        raise ValueError(
            f"{path}: the part '{part}' is empty. Prepare a cohort of more patients, or name another part with --part."
        )
    return entries


def _known(root: Path, part: str, key: str) -> dict[str, Any]:
    """What the COHORT's list of nodules says of each, by file; empty where it has none."""
    path = root / NODULES_NAME
    entries = json.loads(path.read_text()).get(part, []) if path.is_file() else []
    return {entry["nodule"]: entry[key] for entry in entries if key in entry}


def _channels(labelled: Sequence[str]) -> list[float]:
    return [float(channel in labelled) for channel in CHANNELS]


def _check_files(datalist: Path, files: Sequence[Path]) -> None:
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{datalist} names {len(missing)} files that are not there, the first is {missing[0]}. "
            "Make them again, or move their folder as a whole."
        )
