"""Copy-paste as a control: real nodules of the few patients on real normal slices of the few patients.

Placement, balance over the categories and overlay are the product's; only nothing is generated. What comes out is a
data list as `scripts/synthesize.py` writes it (contract C8), without its other files.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.utility.subcohort import CATEGORIES
from lungsynth.cohort.reader import Cohort, CohortSplit
from lungsynth.compositing.render import render
from lungsynth.config import GenerateConfig, PlacementConfig
from lungsynth.ct.write import write_plane
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import read_catalogue
from lungsynth.placement.plan_catalogue import plan_catalogue

__all__ = ["choose_entries", "paste_real"]


def paste_real(cohort: Path, out: Path, *, count: int, seed: int, bundles: Path) -> Path:
    """Makes the slices, or goes on with them.

    Args:
        cohort: of the few patients.
        out: folder of the slices.
        count: of slices.
        seed: of places and turns.
        bundles: not opened; part of what a run is.

    Returns:
        The data list.

    Raises:
        InputError: when the patients have no normal slice, no nodule, or too few places.
    """
    listed = out / "datalist.json"
    if listed.is_file():
        return listed
    library, source = AssetLibrary(out), Cohort.open(cohort).split("training").nonempty()
    _add_all(library, source, seed=seed)
    placement = PlacementConfig(groups=count)
    config = GenerateConfig(out=out, count=count, seed=seed, bundles=bundles, cohort=cohort, placement=placement)
    plan_catalogue(library, config, source)
    entries = []
    for recipe in tqdm(list(read_catalogue(config.catalogue_path)), desc="pasted", unit="slice", leave=False):
        sample = render(recipe, library)
        pair = {"image": f"images/{recipe.id}.nii.gz", "label": f"masks/{recipe.id}.nii.gz"}
        descrip = f"pasted: lungsynth {recipe.id}"
        write_plane(out / pair["label"], sample.label, sample.affine, descrip=descrip)
        write_plane(out / pair["image"], sample.image, sample.affine, descrip=descrip)
        entries.append(pair)
    write_json(listed, {"training": entries})
    return listed


def choose_entries(datalist: Path, count: int, *, seed: int) -> Path:
    """A data list of `count` of the samples, beside the whole one; fewer are the first of more.

    Raises:
        InputError: when there are not so many.
    """
    entries: Sequence[dict[str, str]] = json.loads(datalist.read_text())["training"]
    if count > len(entries):
        raise InputError(f"{datalist}: {count} samples are needed, it lists {len(entries)}. Remove it and run again.")
    order = np.random.default_rng(seed).permutation(len(entries))[:count]
    path = datalist.with_name(f"first_{count}.json")
    write_json(path, {"training": [entries[place] for place in order]})
    return path


def _add_all(library: AssetLibrary, source: CohortSplit, *, seed: int) -> None:
    for category in CATEGORIES:
        for nodule in source.read_nodules(category, seed=seed):
            library.add_nodule(nodule.hu, nodule.alpha, category=category, source="real", origin=nodule.origin)
    lungs = 0
    for lung in source.read_lungs(seed=seed):
        library.add_lung(lung.hu, lung.mask, affine=lung.affine, source="real", origin=lung.origin)
        lungs += 1
    if not lungs:
        raise InputError(
            f"{source.folder}: has no normal slice to paste nodules on. Give --lung-patients at least 1, and a cohort "
            "with scans beside crops."
        )
    library.save_table()
