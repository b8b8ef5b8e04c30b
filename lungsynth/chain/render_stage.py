"""Stage 3: recipes -> composites -> enhanced images and their label maps, each file whole or absent.

A sample's label map is written before its image, so a sample whose image stands is finished, and a run that was stopped
goes on behind it.
"""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from lungsynth.compositing.render import Renderer
from lungsynth.ct.write import write_plane
from lungsynth.enhancement.stage import EnhancedSlice, EnhancementStage
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Recipe

__all__ = ["image_path", "mask_path", "remove_leftovers", "render_samples"]


def image_path(out: Path, sample: str) -> Path:
    """Where the image of a sample stands (contract C8)."""
    return out / "images" / f"{sample}.nii.gz"


def mask_path(out: Path, sample: str) -> Path:
    """Where the label map of a sample stands (contract C8)."""
    return out / "masks" / f"{sample}.nii.gz"


def render_samples(
    recipes: Sequence[Recipe], library: AssetLibrary, out: Path, *, stage: EnhancementStage | None, batch_size: int
) -> list[EnhancedSlice | None]:
    """Writes what is missing of the samples' images and label maps.

    Args:
        recipes: all samples of the run.
        library: their assets.
        out: folder of the run.
        stage: the last stage, or None.
        batch_size: samples between two reports of progress.

    Returns:
        What became of each sample that was written now; None without the last stage.
    """
    renderer, outcomes = Renderer(library), []
    missing = [recipe for recipe in recipes if not image_path(out, recipe.id).exists()]
    with tqdm(total=len(recipes), initial=len(recipes) - len(missing), desc="samples", unit="sample") as progress:
        for begin in range(0, len(missing), batch_size):
            batch = missing[begin : begin + batch_size]
            outcomes += [_write_sample(recipe, renderer, out, stage) for recipe in batch]
            progress.update(len(batch))
    return outcomes


def remove_leftovers(out: Path) -> None:
    """Removes the temporary files of a process that was killed while it wrote."""
    for folder in (out, out / "images", out / "masks", out / "assets"):
        for path in [*folder.glob(".*.tmp"), *folder.glob(".*.part")]:
            path.unlink(missing_ok=True)


def _write_sample(
    recipe: Recipe, renderer: Renderer, out: Path, stage: EnhancementStage | None
) -> EnhancedSlice | None:
    sample = renderer.render(recipe)
    image, outcome = (sample.image, None) if stage is None else stage(sample, recipe.lung, renderer.layer(recipe))
    descrip = f"synthetic: lungsynth {recipe.id}"
    write_plane(mask_path(out, recipe.id), sample.label, sample.affine, descrip=descrip)
    write_plane(image_path(out, recipe.id), image, sample.affine, descrip=descrip)
    return outcome
