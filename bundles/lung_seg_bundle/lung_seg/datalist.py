# SPDX-License-Identifier: Apache-2.0
"""What to read: the parts of a COHORT's `segmentation.json`, and labelled slices of another list beside them.

An entry of kind `slice` is an axial slice with its label map; entries of kind `nodule` (npz files of windows of 90 mm
around a nodule) are gathered: one sample shows several nodules side by side (see `transforms.py`). Kind `sphere`
(`ball` in cohorts of `format: 1`) is the same of a nodule whose outline nobody drew (LUNA16): what is dense in the
sphere of its diameter stands for it, in a training that asks for it. Its scan's slices need no kind of their own:
composites make them labelled for both channels, as they do all slices with lungs, and their label maps know spheres.
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
from .losses import NODULE
from .stacks import open_nodule

__all__ = ["describe_extra", "nodule_files", "nodule_weights", "read_datalist", "read_extra"]

logger = logging.getLogger(__name__)

FILE_NAME = "segmentation.json"
NODULES_NAME = "nodules.json"


def read_datalist(  # noqa: PLR0913 - filled by keyword from a config
    dataset_dir: str | Path | None,
    split: str,
    *,
    nodules_per_sample: int = 9,
    limit: int | None = None,
    extra: str | Path | None = None,
    category_balance: float = 0.0,
    use_spheres: bool = False,
    max_slices: int | None = None,
    needs_nodules: bool = False,
) -> list[dict[str, Any]]:
    """Samples of one split of a COHORT.

    Args:
        dataset_dir: the COHORT.
        split: `training`, `validation` or `test`.
        nodules_per_sample: how many nodules stand side by side in a sample of kind `nodule`.
        limit: keep at most so many samples, evenly spread over the split.
        extra: a MONAI data list with slices whose lungs and nodules are all labelled, such as the `datalist.json` of a
            synthetic set; they stand behind the others, and `limit` does not count them.
        category_balance: of categories among nodules, see `nodule_weights`.
        use_spheres: whether entries of kind `sphere` count like those of kind `nodule`.
        max_slices: keep at most so many slices, evenly spread over the split; nodules are all kept.
        needs_nodules: refuse a split without a nodule to learn from, unless there is `extra`.

    Returns:
        One dict a sample: `kind`, `labelled` (two numbers, lung and nodule: 1 where an expert drew it), `weight` (how
        often it is shown among its kind), `extra` (whether it is one of `extra`), and `image` and `label` (kind
        `slice`) or `nodules` (kind `nodule`, paths of npz files). Nodules of about one size stand together (of one
        category, where these are balanced), and are shown in proportion to it: large ones are rare.

    Raises:
        ValueError: when the COHORT, the split, the extra list or nodules are not there, or files of it are missing.
    """
    entries = _read_split(dataset_dir, split)
    root = Path(str(dataset_dir))
    if needs_nodules and not extra:
        _check_nodules(root / FILE_NAME, split, entries, use_spheres=use_spheres)
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
    sizes, categories = _known(root, split, "diameter_mm"), _known(root, split, "category") if category_balance else {}
    names = _nodule_names(entries, use_spheres=use_spheres)
    names.sort(key=lambda name: (categories.get(Path(name).stem, ""), sizes.get(Path(name).stem, 1.0), name))
    shares = _balanced([categories.get(Path(name).stem, "") for name in names], category_balance)
    weights = [sizes.get(Path(name).stem, 1.0) * share for name, share in zip(names, shares, strict=True)]
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
        entries = json.loads(path.read_text(encoding="utf-8"))["training"]
        pairs = [(path.parent / entry["image"], path.parent / entry["label"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a data list whose `training` names `image` and `label`, got {error!r}. Give "
            "extra_datalist the datalist.json of a synthetic set."
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


def nodule_files(dataset_dir: str | Path | None, split: str, *, use_spheres: bool = False) -> list[Path]:
    """Files of a split's isolated nodules, for `composites.NoduleBank`; arguments as in `read_datalist`."""
    root = Path(str(dataset_dir))
    patches = _known(root, split, "nodule")
    names = _nodule_names(_read_split(dataset_dir, split), use_spheres=use_spheres)
    files = [root / patches[Path(name).stem] for name in names if Path(name).stem in patches]
    _check_files(root / NODULES_NAME, files)
    return files


def nodule_weights(
    dataset_dir: str | Path | None, split: str, *, category_balance: float, use_spheres: bool = False
) -> list[float]:
    """How often each of `nodule_files` is shown, on average 1.

    Args:
        dataset_dir: the COHORT.
        split: as in `read_datalist`.
        category_balance: 0 shows all alike, 1 all categories (`nodules.json`) alike; between, a category of n nodules
            has the weight n to the power of 1 - category_balance.
        use_spheres: as in `read_datalist`.
    """
    categories = _known(Path(str(dataset_dir)), split, "category")
    files = nodule_files(dataset_dir, split, use_spheres=use_spheres)
    return _balanced([categories.get(path.stem, "") for path in files], category_balance)


def _balanced(categories: Sequence[str], category_balance: float) -> list[float]:
    counts = Counter(categories)
    weights = [counts[category] ** -category_balance for category in categories]
    mean = statistics.fmean(weights) if weights else 1.0
    return [weight / mean for weight in weights]


def _nodule_names(entries: Sequence[dict[str, Any]], *, use_spheres: bool) -> list[str]:
    return [entry["image"] for entry in entries if entry["kind"] == "nodule" or (use_spheres and _is_sphere(entry))]


def _is_sphere(entry: dict[str, Any]) -> bool:
    """Whether a nodule is known by centre and diameter alone; cohorts of `format: 1` say `ball`."""
    return entry["kind"] in ("sphere", "ball")


def _spread(items: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """At most so many of them, evenly spread; None: all."""
    if most is None or len(items) <= most:
        return items
    return [items[index * len(items) // most] for index in range(most)]


def _check_nodules(path: Path, split: str, entries: Sequence[dict[str, Any]], *, use_spheres: bool) -> None:
    """Refuses a split that would train the nodule channel on nothing; logs what becomes of nodules known by spheres."""
    known = sum(map(_is_sphere, entries))
    if known:
        said = "train with what is dense in their spheres" if use_spheres else "do not train without use_spheres"
        logger.info("%s: %d nodules of '%s' have centre and diameter alone and %s.", path, known, split, said)
    drawn = any(entry["kind"] == "slice" and "nodule" in entry["labelled"] for entry in entries)
    windows = (path.parent / name for name in _nodule_names(entries, use_spheres=use_spheres))
    if drawn or any(_has_mask(window) for window in windows):
        return
    way = "Give use_spheres True to train with what is dense in these spheres, or prepare" if known else "Prepare"
    raise ValueError(
        f"{path}: a training needs nodules that somebody drew (slices, or crops of two readers), but the split "
        f"'{split}' has none, and {known} nodules with centre and diameter alone. {way} a cohort that holds drawn "
        "nodules, such as those of LIDC-IDRI. For a network of lungs alone set needs_nodules to False."
    )


def _has_mask(path: Path) -> bool:
    return bool((open_nodule(path, ("label",))["label"] == NODULE).any())


def _read_split(dataset_dir: str | Path | None, split: str) -> list[dict[str, Any]]:
    path = Path(str(dataset_dir)) / FILE_NAME
    if dataset_dir is None or not path.is_file():
        raise ValueError(
            f"This needs a COHORT with {FILE_NAME}, got dataset_dir={dataset_dir}. Give dataset_dir, "
            "a folder written by scripts/prepare.py."
        )
    entries = json.loads(path.read_text(encoding="utf-8")).get(split) or []
    if not entries:
        raise ValueError(f"{path}: the split '{split}' is empty. Prepare a cohort of more patients, or another split.")
    return entries


def _known(root: Path, split: str, key: str) -> dict[str, Any]:
    """What the COHORT's list of nodules says of each, by id; empty where it has none."""
    path = root / NODULES_NAME
    entries = json.loads(path.read_text(encoding="utf-8")).get(split, []) if path.is_file() else []
    return {Path(entry["nodule"]).stem: entry[key] for entry in entries if key in entry}


def _channels(labelled: Sequence[str]) -> list[float]:
    return [float(channel in labelled) for channel in CHANNELS]


def _check_files(datalist: Path, files: Sequence[Path]) -> None:
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{datalist} names {len(missing)} files that are not there, the first is {missing[0]}. "
            "Make them again, or move their folder as a whole."
        )
