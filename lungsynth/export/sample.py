"""A sample on its way out: pixels, name, and what the label files say of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lungsynth.compositing.overlay import NoduleMask
from lungsynth.compositing.render import Annotation, Rendered, Renderer
from lungsynth.enhancement.stage import EnhancedSlice, EnhancementStage
from lungsynth.hounsfield import Label
from lungsynth.placement.catalogue import Recipe
from lungsynth.placement.growth import Variant
from lungsynth.placement.lung_shape import Box
from lungsynth.types import Affine, HuPlane, LabelPlane, MaskPlane

__all__ = ["ExportedSample", "export_variant"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ExportedSample:
    """A sample with its name.

    Args:
        name: of its files, unique.
        recipe: that made it.
        day: of the scan, 0 but in a growth series.
        image: HU.
        label: `Label` ids.
        affine: (column, row, slice) -> RAS mm.
        boxes: one a nodule.
        masks: one a nodule, in its box.
        annotations: one a nodule.
        categories: one a nodule.
        outcome: of the enhancer's work; None without it.
    """

    name: str
    recipe: Recipe
    day: int
    image: HuPlane
    label: LabelPlane
    affine: Affine
    boxes: tuple[Box, ...]
    masks: tuple[NoduleMask, ...]
    annotations: tuple[Annotation, ...]
    categories: tuple[str, ...]
    outcome: EnhancedSlice | None = None

    @property
    def descrip(self) -> str:
        """What a header says of it."""
        return f"synthetic: lungsynth {self.recipe.id}"

    @property
    def lung(self) -> MaskPlane:
        """Lung with its nodules, (H, W)."""
        return self.label != Label.BACKGROUND

    @property
    def nodules(self) -> list[MaskPlane]:
        """One mask a nodule, (H, W)."""
        planes = [np.zeros(self.label.shape, dtype=bool) for _ in self.boxes]
        for plane, box, mask in zip(planes, self.boxes, self.masks, strict=True):
            plane[box.row_from : box.row_to, box.column_from : box.column_to] = mask
        return planes

    def facts(self) -> dict[str, Any]:
        """What the label files need, as JSON."""
        return {
            "name": self.name,
            "recipe": self.recipe.id,
            "day": self.day,
            "shape": list(self.image.shape),
            "affine": self.affine.ravel().tolist(),
            "categories": list(self.categories),
            "boxes": [[int(value) for value in box] for box in self.boxes],
            "annotations": [list(annotation) for annotation in self.annotations],
            "runs": [_runs(mask) for mask in self.nodules],
            **({"enhancement": self.outcome.facts()} if self.outcome else {}),
        }


def export_variant(variant: Variant, renderer: Renderer, stage: EnhancementStage | None) -> ExportedSample:
    """Renders a variant.

    Args:
        variant: what to make.
        renderer: of its library.
        stage: the last stage, or None.

    Raises:
        InputError: when an asset is missing or damaged.
    """
    recipe = variant.recipe
    sample: Rendered = renderer.render(recipe) if variant.nodules else renderer.lung(recipe)
    image, outcome = sample.image, None
    if stage is not None:
        image, outcome = stage(sample, recipe.lung, renderer.layer(recipe))
    return ExportedSample(
        name=variant.name,
        recipe=recipe,
        day=variant.day,
        image=image,
        label=sample.label,
        affine=sample.affine,
        boxes=sample.boxes,
        masks=sample.masks,
        annotations=sample.annotations,
        categories=tuple(nodule.category for nodule in recipe.nodules) if variant.nodules else (),
        outcome=outcome,
    )


def _runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: down the columns, beginning with background."""
    values = np.concatenate([[False], mask.ravel(order="F"), [False]])
    changes = np.flatnonzero(values[1:] != values[:-1])
    ends = np.concatenate([changes, [mask.size]]) if not len(changes) or changes[-1] != mask.size else changes
    return np.diff(ends, prepend=0).astype(int).tolist()
