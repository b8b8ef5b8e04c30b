"""Inserting nodules into windows, with the product's own transform: copies of real ones, or generated ones.

Both kinds take the same way, `RandInsertNodulesd`: its places, its overlay, and the host's noise and sharpness. So what
differs between the arms is where the nodules come from. Copies are mirrored, turned and scaled, which is what
copy-paste can do.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.utility.patches import generate_examples
from evaluation.utility.subcohort import CATEGORIES
from evaluation.utility.windows import TrainingWindows
from lungsynth.cohort.files import read_arrays
from lungsynth.cohort.reader import CohortSplit
from lungsynth.data.insert import InsertionSettings, RandInsertNodulesd
from lungsynth.errors import InputError
from lungsynth.geometry import PATCH_SPACING_MM
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import AssetLibrary, TooSmallError
from lungsynth.placement.groups import GroupSettings

__all__ = ["copied_library", "generated_library", "insert_nodules"]

_SCALES = (0.8, 1.25)
_TRIES = 4  # windows for each one wanted: on some, nothing fits


def copied_library(split: CohortSplit, patients: Collection[str], folder: Path) -> AssetLibrary:
    """All slices of the nodules of some patients on which the nodule can be seen.

    Args:
        split: of the cohort, the training one.
        patients: ids.
        folder: of the library, made when absent.

    Raises:
        InputError: when they have none.
    """
    library = AssetLibrary(folder)
    for nodule in split.nodules():
        if nodule.patient_id in patients and nodule.category in CATEGORIES:
            slices = zip(*read_arrays(split.folder / nodule.nodule, "hu", "alpha"), strict=True)
            for number, (hu, alpha) in enumerate(slices):
                if alpha.max() >= 0.5:
                    origin = f"{nodule.nodule_id} {number}"
                    _add(library, hu, alpha, category=nodule.category, source="real", origin=origin)
    if not len(library):
        raise InputError(f"{split.folder}: none of {len(patients)} patients has a nodule that can be inserted.")
    library.save_table()
    return library


def generated_library(sampler: Any, folder: Path, *, weights: str, per_category: int, seed: int) -> AssetLibrary:
    """Generated nodules, as many of each category.

    Args:
        sampler: the nodule sampler of wcapsgan_bundle.
        folder: of the library, made when absent.
        weights: SHA-256 of the generator.
        per_category: of each category; those that are too small to be seen are left out.
        seed: of all.

    Raises:
        InputError: when the sampler knows other categories, or gives too few.
    """
    library = AssetLibrary(folder)
    pools = generate_examples(sampler, [per_category] * len(CATEGORIES), seed=seed)
    for category, pool in zip(CATEGORIES, pools, strict=True):
        for number, (hu, alpha) in enumerate(zip(pool.hu, pool.alpha, strict=True)):
            facts: dict[str, Any] = {"category": category, "source": "generated", "weights": weights}
            _add(library, hu, alpha, origin=f"{seed}-{number}", **facts)
    library.save_table()
    return library


def _add(library: AssetLibrary, hu: np.ndarray, alpha: np.ndarray, **facts: Any) -> None:
    with suppress(TooSmallError):
        library.add_nodule(hu, alpha, **facts)


def insert_nodules(
    hosts: TrainingWindows, library: AssetLibrary, count: int, *, seed: int, nodules: Mapping[int, float] | None = None
) -> TrainingWindows:
    """Windows with a nodule more, at places where nodules occur.

    Args:
        hosts: windows to draw from.
        library: of the nodules.
        count: of windows.
        seed: of hosts, nodules and places.
        nodules: how many a window -> probability; one when None.

    Raises:
        InputError: when nodules fit on too few of the hosts.
    """
    groups = GroupSettings(count_probabilities=nodules or {1: 1.0}, scale_range=_SCALES)
    insert = RandInsertNodulesd(
        library, prob=1.0, spacing_mm=(PATCH_SPACING_MM, PATCH_SPACING_MM), settings=InsertionSettings(groups=groups)
    )
    insert.set_random_state(seed % 2**32)
    rng, hu, label = np.random.default_rng(seed), [], []
    with tqdm(total=count, desc="inserting", unit="window", leave=False) as progress:
        for index in rng.integers(0, len(hosts), _TRIES * count).tolist():
            lung = hosts.lung_at(index)
            if not lung.any():
                continue
            drawn = np.where(hosts.label[index] == Label.NODULE, Label.NODULE, lung).astype(np.uint8)
            sample = insert({"image": hosts.hu[index][None].astype(np.float32), "label": drawn[None]})
            if not len(sample["labels"]):
                continue
            hu.append(np.rint(sample["image"][0]).astype(np.int16))
            label.append(np.where(sample["label"][0] == Label.NODULE, Label.NODULE, hosts.label[index]))
            progress.update()
            if len(hu) == count:
                break
        else:
            raise InputError(f"Nodules fit into {len(hu)} windows, {count} are needed. Give more patients.")
    return TrainingWindows(hu=np.stack(hu), label=np.stack(label).astype(np.uint8))
