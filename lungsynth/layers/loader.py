"""A `DataLoader` whose workers render straight into memory that they share with the main process, again and again.

A plain `DataLoader` asks the system for new shared memory for each batch; on a fast renderer that takes longer than the
rendering (docs/rendering.md has figures). Here each worker owns a few slots, each as large as a batch. Batch k of a
worker goes to slot k modulo their number, and the main process copies it out before it asks for another one. A worker
is never more than `prefetch_factor` batches ahead of what was asked for, so with one slot more than that none is
overwritten while it is read.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange

from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.layers.dataset import LayeredLungDataset, Outline, collate_layers, outline

__all__ = ["LayeredLungLoader"]


class _Ticket(NamedTuple):
    """Where a batch lies, and what is said of it."""

    slot: int
    shapes: list[tuple[int, int]]
    outlines: list[Outline]


class _SlotDataset(torch.utils.data.Dataset):
    """Renders whole batches into slots; one for each worker is made by copying this to it."""

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
        shapes, outlines, begin = [], [], 0
        for index in indices:
            recipe = self.dataset.recipes[index]
            shape = self.dataset.renderer.shape(recipe)
            here = slice(begin, begin + shape[0] * shape[1])
            image, mask = images[here].reshape(shape), masks[here].reshape(shape)
            sample = self.dataset.renderer.render(recipe, out=(image, mask))
            if self.dataset.enhance is not None:
                image[...] = self.dataset.enhance(image, mask == Label.NODULE)
            shapes.append(shape)
            outlines.append(outline(recipe, sample, self.dataset.categories))
            begin = here.stop
        return _Ticket(slot, shapes, outlines)


class LayeredLungLoader(torch.utils.data.DataLoader):
    """Batches of a `LayeredLungDataset`, as `collate_layers` makes them.

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
            collate_fn=_as_it_is,
            **settings,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        return (self._redeem(ticket) for ticket in super().__iter__())

    def _redeem(self, ticket: _Ticket) -> dict[str, Any]:
        images, masks = self._slots.images[ticket.slot], self._slots.masks[ticket.slot]
        described = [self._slots.dataset.describe(one) for one in ticket.outlines]
        if len(set(ticket.shapes)) == 1:
            (height, width), n = ticket.shapes[0], len(ticket.shapes)
            grid = {"n": n, "h": height, "w": width}
            size = n * height * width
            batch = {key: [one[key] for one in described] for key in described[0]}
            return {
                "image": self._own(rearrange(images[:size], "(n h w) -> n 1 h w", **grid), self._dtype),
                "mask": self._own(rearrange(masks[:size], "(n h w) -> n 1 h w", **grid), torch.uint8),
                **batch,
            }
        begin, samples = 0, []
        for (height, width), one in zip(ticket.shapes, described, strict=True):
            here = slice(begin, begin + height * width)
            image = self._own(images[here].reshape(1, height, width), self._dtype)
            mask = self._own(masks[here].reshape(1, height, width), torch.uint8)
            samples.append({"image": image, "mask": mask, **one})
            begin = here.stop
        return collate_layers(samples)

    def _own(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return values.to(dtype, copy=True) if self._copies else values


def _as_it_is(ticket: Any) -> Any:
    return ticket


def _largest_grid(dataset: LayeredLungDataset) -> tuple[int, int]:
    shapes = [dataset.library.shape(asset.hash) for asset in dataset.library if asset.kind == "lung"]
    heights, widths = zip(*shapes, strict=True)
    return max(heights), max(widths)
