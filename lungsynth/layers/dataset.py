"""Data sets of layered lungs for training in PyTorch and MONAI, made on demand from a catalogue."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange

from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.layers.catalogue import Catalogue, Recipe, read_catalogue
from lungsynth.layers.library import AssetLibrary
from lungsynth.layers.render import Enhancer, Rendered, Renderer
from lungsynth.types import Affine

__all__ = ["LayeredLungDataset", "LayeredLungStream", "Outline", "collate_layers", "outline"]


class LayeredLungDataset(torch.utils.data.Dataset):
    """Samples of a catalogue, as dictionaries of

    - `image`: float32 or int16 (1, H, W), HU;
    - `mask`: uint8 (1, H, W), 0 background, 1 lung, 2 nodule;
    - `boxes`: float32 (n, 4), (first row, first column, last row + 1, last column + 1): MONAI's `xyxy` for (1, H, W);
    - `labels`: int64 (n,), indices into `categories`;
    - `meta`: `id`, `affine` (4, 4) RAS, `spacing_mm` (row, column), `centres_lps_mm` (n, 3), `diameters_mm` (n,).

    Lungs keep their own grids, so a batch of samples of several grids needs a transform that brings them to one size,
    or `collate_layers`. `loader.LayeredLungLoader` is faster than a plain `DataLoader` on this.

    Args:
        catalogue: `catalogue.parquet`.
        library: folder with `assets/` and `assets.parquet`; the catalogue's own when None.
        enhance: see `render`.
        dtype: of the image; int16 takes half the memory on its way from a worker.

    Raises:
        InputError: when the catalogue or an asset cannot be read, or the dtype is another.
    """

    def __init__(
        self,
        catalogue: str | Path,
        *,
        library: str | Path | None = None,
        enhance: Enhancer | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype not in (torch.float32, torch.int16):
            raise InputError(f"The image of a sample is float32 or int16, got {dtype}. Cast it in a transform.")
        path = Path(catalogue)
        self.recipes: Catalogue = read_catalogue(path)
        self.library = AssetLibrary(path.parent if library is None else Path(library))
        self.renderer = Renderer(self.library)
        self.enhance = enhance
        self.dtype = dtype
        self.categories = self.recipes.categories()
        self._grids: dict[str, tuple[tuple[float, float], Affine]] = {}

    def __len__(self) -> int:
        return len(self.recipes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        recipe = self.recipes[index]
        sample = self.renderer.render(recipe)
        image = sample.image
        if self.enhance is not None:
            image = self.enhance(image, sample.label == Label.NODULE)
        return {
            "image": torch.from_numpy(rearrange(image, "h w -> 1 h w")).to(self.dtype),
            "mask": torch.from_numpy(rearrange(sample.label, "h w -> 1 h w")),
            **self.describe(outline(recipe, sample, self.categories)),
        }

    def describe(self, found: "Outline") -> dict[str, Any]:
        """What a dictionary says beside image and mask."""
        spacing_mm, affine = self._grid(found.lung)
        annotations = np.array(found.annotations, dtype=np.float64)
        return {
            "boxes": torch.tensor(found.boxes, dtype=torch.float32),
            "labels": torch.tensor(found.labels, dtype=torch.int64),
            "meta": {
                "id": found.id,
                "affine": affine.copy(),
                "spacing_mm": spacing_mm,
                "centres_lps_mm": annotations[:, :3],
                "diameters_mm": annotations[:, 3],
            },
        }

    def _grid(self, lung: str) -> tuple[tuple[float, float], Affine]:
        if lung not in self._grids:
            asset = self.library[lung]
            self._grids[lung] = asset.spacing_mm, asset.affine_matrix
        return self._grids[lung]


class Outline(NamedTuple):
    """What is known of a sample once it is rendered, in the plain values that are quickly sent between processes."""

    id: str
    lung: str
    boxes: list[tuple[int, ...]]
    labels: list[int]
    annotations: list[tuple[float, ...]]


def outline(recipe: Recipe, sample: Rendered, categories: tuple[str, ...]) -> Outline:
    """The outline of a rendered recipe."""
    labels = [categories.index(nodule.category) for nodule in recipe.nodules]
    boxes, annotations = [tuple(box) for box in sample.boxes], [tuple(found) for found in sample.annotations]
    return Outline(recipe.id, recipe.lung, boxes, labels, annotations)


class LayeredLungStream(torch.utils.data.IterableDataset):
    """The samples of a `LayeredLungDataset` one after the other; workers and ranks share them out between them.

    Args:
        dataset: what to go through.
        shuffle_seed: of the order, the same for all ranks; the catalogue's order when None. Call `set_epoch` for
            another order in each epoch.
        rank: of this process in a training with several, and
        ranks: their number.

    Raises:
        InputError: when the rank is none of those.
    """

    def __init__(
        self, dataset: LayeredLungDataset, *, shuffle_seed: int | None = None, rank: int = 0, ranks: int = 1
    ) -> None:
        if not 0 <= rank < ranks:
            raise InputError(f"rank must be one of 0 .. {ranks - 1}, got {rank}.")
        self.dataset, self.shuffle_seed, self.rank, self.ranks = dataset, shuffle_seed, rank, ranks
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Changes the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.ranks))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = np.arange(len(self.dataset))
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, self.epoch]).permutation(order)
        return (self.dataset[int(index)] for index in order[self.rank :: self.ranks][first::step])


def collate_layers(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: `image` and `mask` (N, 1, H, W) where all have one grid, else lists; all else as lists.

    Lists are what MONAI's detectors take for `boxes` and `labels`.
    """
    batch: dict[str, Any] = {key: [sample[key] for sample in samples] for key in samples[0]}
    if len({sample["image"].shape for sample in samples}) == 1:
        batch["image"], batch["mask"] = torch.stack(batch["image"]), torch.stack(batch["mask"])
    return batch
