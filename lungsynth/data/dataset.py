"""Samples of a catalogue for training in PyTorch and MONAI, rendered when they are asked for.

What is rendered is what `lungsynth generate` would write: a catalogue that notes the CycleGAN is enhanced here too,
unless `enhance=False` asks for the composites, which are made much faster.

Samples have different numbers of nodules. `Ragged` tensors are what of them would not stack; PyTorch's and MONAI's
collate functions make lists of them, which MONAI's detectors take.

`LayeredLungDataset` says what a sample is. `LayeredLungLoader` is a `DataLoader` whose workers render straight into
memory that they share with the main process, again and again: a plain one asks the system for new shared memory for
each batch, which takes longer than the rendering (docs/results/speed.md has figures). Each worker owns a few slots,
each as large as a batch. Batch k of a worker goes to slot k modulo their number, and the main process copies it out
before it asks for another one. A worker is never more than `prefetch_factor` batches ahead of what was asked for, so
with one slot more than that none is overwritten while it is read.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch.utils.data._utils.collate import default_collate_fn_map

from lungsynth.compositing.render import Enhancer, Rendered, Renderer
from lungsynth.config import default_bundles
from lungsynth.enhancement.stage import EnhancementStage, check_noted_weights, open_stage
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, Recipe, read_catalogue
from lungsynth.types import Affine, HuPlane

__all__ = ["LayeredLungDataset", "LayeredLungLoader", "Ragged", "collate_samples"]


class Ragged(torch.Tensor):
    """A tensor with a row for each nodule; a batch of several is a list of plain tensors.

    The one way that PyTorch has to tell its collate function so is this entry in its table.
    """

    @classmethod
    def of(cls, values: Any, dtype: torch.dtype, columns: int | None = None) -> "Ragged":
        """From numbers or a tensor: (n,), or (n, columns), also where n is 0."""
        tensor = torch.as_tensor(values, dtype=dtype)
        return (tensor if columns is None else tensor.reshape(-1, columns)).as_subclass(cls)


def _as_list(batch: Sequence[Ragged], **_: Any) -> list[torch.Tensor]:
    return [values.as_subclass(torch.Tensor) for values in batch]


default_collate_fn_map[Ragged] = _as_list


class LayeredLungDataset(torch.utils.data.Dataset):
    """Samples of a catalogue, as dictionaries of

    - `image`: float32 or int16 (1, H, W), HU;
    - `mask`: uint8 (1, H, W), 0 background, 1 lung, 2 nodule;
    - `boxes`: float32 (n, 4), (first row, first column, last row + 1, last column + 1): MONAI's `xyxy` for (1, H, W);
    - `labels`: int64 (n,), indices into `categories`;
    - `meta`: `id`, `affine` (4, 4) RAS, `spacing_mm` (row, column), `centres_lps_mm` (n, 3), `diameters_mm` (n,).

    What has a row for each nodule is `Ragged`: a list in a batch of PyTorch's or MONAI's `DataLoader`. Where lungs have
    grids of their own (`grid` native), images need a transform that brings them to one size, or `collate_samples`.
    `LayeredLungLoader` is faster than a plain `DataLoader` on this.

    Args:
        catalogue: `catalogue.parquet`.
        library: folder with `assets/` and `assets.parquet`; the catalogue's own when None.
        enhance: the last stage. None: as the catalogue notes it, so that samples are those that `generate` writes;
            True: the CycleGAN; False: none; else an `Enhancer` of your own.
        bundles: folder of the bundles with the CycleGAN; those of this installation when None.
        dtype: of the image; int16 takes half the memory on its way from a worker.

    Raises:
        InputError: when the catalogue, an asset or the noted CycleGAN cannot be read, or the dtype is another.
    """

    def __init__(
        self,
        catalogue: str | Path,
        *,
        library: str | Path | None = None,
        enhance: Enhancer | bool | None = None,
        bundles: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype not in (torch.float32, torch.int16):
            raise InputError(f"The image of a sample is float32 or int16, got {dtype}. Cast it in a transform.")
        path = Path(catalogue)
        self.recipes: Catalogue = read_catalogue(path)
        self.library = AssetLibrary(path.parent if library is None else Path(library))
        self.renderer = Renderer(self.library)
        noted = self.recipes.enhancement
        self.enhance = (noted is not None) if enhance is None else enhance
        self.dtype = dtype
        self._bundles = (Path(bundles) if bundles else default_bundles()) if self.enhance is True else None
        if self._bundles and enhance is None:
            check_noted_weights(self.recipes, self._bundles)
        self._label_check = noted is None or noted.label_check
        self._stage: EnhancementStage | None = None
        self.categories = self.recipes.categories()
        self._grids: dict[str, tuple[tuple[float, float], Affine]] = {}

    def __len__(self) -> int:
        return len(self.recipes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        recipe = self.recipes[index]
        sample = self.renderer.render(recipe)
        image = self.finished(recipe, sample)
        return {
            "image": torch.from_numpy(rearrange(image, "h w -> 1 h w")).to(self.dtype),
            "mask": torch.from_numpy(rearrange(sample.label, "h w -> 1 h w")),
            **self.describe(_annotate(recipe, sample, self.categories)),
        }

    def __getstate__(self) -> dict[str, Any]:
        # Networks are opened where they work, in each worker of a loader.
        return self.__dict__ | {"_stage": None}

    def finished(self, recipe: Recipe, sample: Rendered) -> HuPlane:
        """The image of a sample after the last stage; the composite itself where there is none."""
        if self.enhance is False:
            return sample.image
        if callable(self.enhance):
            image: HuPlane = self.enhance(sample.image, sample.label == Label.NODULE)
            return image
        if self._stage is None:
            self._stage = open_stage(self._bundles or default_bundles(), label_check=self._label_check)
        return self._stage(sample, recipe.lung, self.renderer.background(recipe))[0]

    def describe(self, annotated: "_Annotated") -> dict[str, Any]:
        """What a sample's dictionary has beside image and mask."""
        spacing_mm, affine = self._grid(annotated.lung)
        annotations = Ragged.of(annotated.annotations, torch.float64, 4)
        return {
            "boxes": Ragged.of(annotated.boxes, torch.float32, 4),
            "labels": Ragged.of(annotated.labels, torch.int64),
            "meta": {
                "id": annotated.id,
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


def collate_samples(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: `image` and `mask` (N, 1, H, W) where all have one grid, else lists; all else as lists.

    Lists are what MONAI's detectors take for `boxes` and `labels`.
    """
    batch: dict[str, Any] = {key: [sample[key] for sample in samples] for key in samples[0]}
    if len({sample["image"].shape for sample in samples}) == 1:
        batch["image"], batch["mask"] = torch.stack(batch["image"]), torch.stack(batch["mask"])
    return batch


class LayeredLungLoader(torch.utils.data.DataLoader):
    """Batches of a `LayeredLungDataset`, as `collate_samples` makes them.

    Args:
        dataset: its `dtype` is that of the images.
        batch_size: samples a batch.
        num_workers: processes; 0 renders in this one.
        prefetch_factor: batches that a worker may be ahead.
        copy: give batches memory of their own. Without, a batch is overwritten soon after the next one is asked for,
            which saves time where each batch goes to a GPU at once; images stay int16 then.
        settings: any other of `torch.utils.data.DataLoader`: `shuffle`, `sampler`, `drop_last`, `generator`,
            `persistent_workers`, `multiprocessing_context`.

    Raises:
        InputError: on a setting that would undo this.
    """

    def __init__(
        self,
        dataset: LayeredLungDataset,
        *,
        batch_size: int = 16,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        copy: bool = True,
        **settings: Any,
    ) -> None:
        refused = sorted({"collate_fn", "batch_sampler", "in_order"} & set(settings))
        if refused:
            raise InputError(f"LayeredLungLoader makes its own batches in order, got {refused}; use a DataLoader.")
        self._slots = _SlotDataset(dataset, batch_size, num_workers, prefetch_factor + 1)
        self._copies, self._dtype = copy, dataset.dtype if copy else torch.int16
        super().__init__(
            self._slots,
            batch_size=batch_size,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor if num_workers else None,
            collate_fn=_identity,
            **settings,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        return (self._batch(ticket) for ticket in super().__iter__())

    def _batch(self, ticket: "_Ticket") -> dict[str, Any]:
        images, masks = self._slots.images[ticket.slot], self._slots.masks[ticket.slot]
        described = [self._slots.dataset.describe(sample) for sample in ticket.annotated]
        if len(set(ticket.shapes)) == 1:
            (height, width), n = ticket.shapes[0], len(ticket.shapes)
            grid = {"n": n, "h": height, "w": width}
            size = n * height * width
            batch = {key: [sample[key] for sample in described] for key in described[0]}
            return {
                "image": self._own(rearrange(images[:size], "(n h w) -> n 1 h w", **grid), self._dtype),
                "mask": self._own(rearrange(masks[:size], "(n h w) -> n 1 h w", **grid), torch.uint8),
                **batch,
            }
        begin, samples = 0, []
        for (height, width), sample in zip(ticket.shapes, described, strict=True):
            end = begin + height * width
            image = self._own(images[begin:end].reshape(1, height, width), self._dtype)
            mask = self._own(masks[begin:end].reshape(1, height, width), torch.uint8)
            samples.append({"image": image, "mask": mask, **sample})
            begin = end
        return collate_samples(samples)

    def _own(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return values.to(dtype, copy=True) if self._copies else values


class _Annotated(NamedTuple):
    """What is known of a sample once it is rendered, in the plain values that are quickly sent between processes."""

    id: str
    lung: str
    boxes: list[tuple[int, ...]]
    labels: list[int]
    annotations: list[tuple[float, ...]]


def _annotate(recipe: Recipe, sample: Rendered, categories: tuple[str, ...]) -> _Annotated:
    labels = [categories.index(nodule.category) for nodule in recipe.nodules]
    boxes = [tuple(box) for box in sample.boxes]
    return _Annotated(recipe.id, recipe.lung, boxes, labels, [tuple(values) for values in sample.annotations])


class _Ticket(NamedTuple):
    """Where a batch lies, the shapes of its samples, and their annotations."""

    slot: int
    shapes: list[tuple[int, int]]
    annotated: list[_Annotated]


class _SlotDataset(torch.utils.data.Dataset):
    """Renders whole batches into slots; each worker gets a copy of this, with the same shared memory."""

    def __init__(self, dataset: LayeredLungDataset, batch_size: int, workers: int, slots: int) -> None:
        self.dataset = dataset
        self.slots = slots
        height, width = _largest_grid(dataset)
        size = batch_size * height * width
        self.images = torch.empty((max(1, workers) * slots, size), dtype=torch.int16).share_memory_()
        self.masks = torch.empty((max(1, workers) * slots, size), dtype=torch.uint8).share_memory_()
        self.turn = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> _Ticket:
        worker = torch.utils.data.get_worker_info()
        slot = (0 if worker is None else worker.id) * self.slots + self.turn % self.slots
        self.turn += 1
        images, masks = self.images[slot].numpy(), self.masks[slot].numpy()
        shapes, annotated, begin = [], [], 0
        for index in indices:
            recipe = self.dataset.recipes[index]
            shape = self.dataset.renderer.shape(recipe)
            end = begin + shape[0] * shape[1]
            image, mask = images[begin:end].reshape(shape), masks[begin:end].reshape(shape)
            sample = self.dataset.renderer.render(recipe, out=(image, mask))
            if self.dataset.enhance is not False:
                image[...] = self.dataset.finished(recipe, sample)
            shapes.append(shape)
            annotated.append(_annotate(recipe, sample, self.dataset.categories))
            begin = end
        return _Ticket(slot, shapes, annotated)


def _identity(ticket: Any) -> Any:
    return ticket


def _largest_grid(dataset: LayeredLungDataset) -> tuple[int, int]:
    shapes = [dataset.library.shape(asset.hash) for asset in dataset.library if asset.kind == "lung"]
    heights, widths = zip(*shapes, strict=True)
    return max(heights), max(widths)
