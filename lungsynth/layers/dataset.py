"""A data set of layered lungs for training in PyTorch and MONAI, made on demand from a catalogue."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from lungsynth.layers.catalogue import read_catalogue
from lungsynth.layers.library import AssetLibrary
from lungsynth.layers.render import Enhancer, render

__all__ = ["LayeredLungDataset"]


class LayeredLungDataset(torch.utils.data.Dataset):
    """Samples of a catalogue, as dictionaries of

    - `image`: float32 (1, H, W), HU;
    - `mask`: uint8 (1, H, W), 0 background, 1 lung, 2 nodule;
    - `boxes`: float32 (n, 4), (first row, first column, last row + 1, last column + 1): MONAI's `xyxy` for (1, H, W);
    - `labels`: int64 (n,), indices into `categories`;
    - `meta`: `id`, `affine` (4, 4) RAS, `spacing_mm` (row, column), `centres_lps_mm` (n, 3), `diameters_mm` (n,).

    Lungs keep their own grids, so a batch of samples needs a transform that brings them to one size. Nodules differ in
    number: collate `boxes` and `labels` as lists (`monai.data.utils.no_collation`).

    Args:
        catalogue: `catalogue.parquet`.
        library: folder with `assets/` and `assets.parquet`; the catalogue's own when None.
        enhance: see `render`.

    Raises:
        InputError: when the catalogue or an asset cannot be read.
    """

    def __init__(
        self, catalogue: str | Path, *, library: str | Path | None = None, enhance: Enhancer | None = None
    ) -> None:
        path = Path(catalogue)
        self.recipes = read_catalogue(path)
        self.library = AssetLibrary(path.parent if library is None else Path(library))
        self.enhance = enhance
        self.categories = self.recipes.categories()

    def __len__(self) -> int:
        return len(self.recipes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        recipe = self.recipes[index]
        sample = render(recipe, self.library, enhance=self.enhance)
        annotations = np.array(sample.annotations, dtype=np.float64)
        return {
            "image": torch.from_numpy(rearrange(sample.image.astype(np.float32), "h w -> 1 h w")),
            "mask": torch.from_numpy(rearrange(sample.label, "h w -> 1 h w")),
            "boxes": torch.tensor(sample.boxes, dtype=torch.float32),
            "labels": torch.tensor([self.categories.index(nodule.category) for nodule in recipe.nodules]),
            "meta": {
                "id": recipe.id,
                "affine": sample.affine,
                "spacing_mm": self.library[recipe.lung].spacing_mm,
                "centres_lps_mm": annotations[:, :3],
                "diameters_mm": annotations[:, 3],
            },
        }
