"""Stage 4: what is said of the samples: `annotations.csv`, `datalist.json` and the contact sheet."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lungsynth.chain.render_stage import image_path, mask_path
from lungsynth.compositing.render import render
from lungsynth.contact_sheet import Tile, contact_sheet, pick_tiles
from lungsynth.ct.series import NoduleSphere
from lungsynth.ct.write import read_plane, write_annotations, write_atomically
from lungsynth.io.atomic import write_picture
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Recipe

__all__ = ["read_tile", "write_reports"]


def write_reports(
    recipes: Sequence[Recipe], library: AssetLibrary, out: Path, *, patients: Mapping[str, str] | None = None
) -> None:
    """Writes the three files; all follow from the recipes and the samples.

    Args:
        recipes: all samples of the run.
        library: their assets.
        out: folder of the run, with its images and label maps.
        patients: of real assets, by their `origin`.
    """
    write_annotations(out / "annotations.csv", _spheres(recipes, library))
    write_atomically(
        out / "datalist.json", (json.dumps(_datalist(recipes, library, out, patients or {}), indent=1) + "\n").encode()
    )
    shown = set(pick_tiles([recipe.id for recipe in recipes]))
    tiles = [read_tile(recipe, out) for recipe in recipes if recipe.id in shown]
    write_picture(out / "contact_sheet.png", contact_sheet(tiles))


def read_tile(recipe: Recipe, out: Path) -> Tile:
    """A finished sample as the contact sheet shows it."""
    hu, _ = read_plane(image_path(out, recipe.id))
    mask, _ = read_plane(mask_path(out, recipe.id))
    return Tile(hu=hu, mask=mask, title=recipe.id, category=recipe.nodules[0].category)


def _spheres(recipes: Sequence[Recipe], library: AssetLibrary) -> Iterator[NoduleSphere]:
    for recipe in recipes:
        # The enhancer moves no label, so the composite tells where the nodules are.
        for x_mm, y_mm, z_mm, diameter_mm in render(recipe, library).annotations:
            yield NoduleSphere(series_id=recipe.id, centre_lps_mm=(x_mm, y_mm, z_mm), diameter_mm=diameter_mm)


def _datalist(
    recipes: Sequence[Recipe], library: AssetLibrary, out: Path, patients: Mapping[str, str]
) -> dict[str, list[dict[str, Any]]]:
    entries: list[dict[str, Any]] = []
    for recipe in recipes:
        files = image_path(out, recipe.id), mask_path(out, recipe.id)
        image, label = (path.relative_to(out).as_posix() for path in files)
        parts = (recipe.lung, *(nodule.asset for nodule in recipe.nodules))
        named = [patient for part in parts if (patient := patients.get(library[part].origin))]
        provenance = {"patient_id": sorted(set(named)), "parts_without_patient": len(parts) - len(named)}
        entries.append({"image": image, "label": label, **provenance})
    return {"training": entries}
