# SPDX-License-Identifier: Apache-2.0
"""Running the network on slices of any spacing: probabilities come back on the slices' own grid.

A volume is (D, H, W) of int16 HU; only the batch at hand is ever float. Slices go through the network as far as they
can show lung (see `region.py`); elsewhere both probabilities are 0.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from tqdm import tqdm

from . import CHANNELS
from .common.hounsfield import CT_RANGE_HU, Window
from .common.precision import use_bfloat16
from .fused_inference import fuse
from .grid import Box, covered, resample_part, resampled_shape, source_box
from .neighbours import neighbour_table
from .region import lung_boxes

__all__ = ["Look", "Segmenter", "VolumeInferer"]


class Look(NamedTuple):
    """What the network said of a slice (H, W).

    Args:
        part: of the network's grid, which it saw.
        maps: probabilities float16 (2, H, W), 0 where it did not look.
    """

    part: Box
    maps: Tensor


class Segmenter:
    """Finds lung and nodules on a slice: `(hu, spacing_mm) -> {"lung": ..., "nodule": ...}`; `volume` on a scan.

    Args:
        network: trained; (B, slices, H, W) in [-1, 1] -> logits (B, 2, H, W), any H and W.
        spacing_mm: of the grid that the network was trained on.
        window_hu: mapped to [-1, 1], clipped outside.
        device: where the network runs; the network is moved there.
        inferer: how the network is applied, such as MONAI's sliding windows; on all at once by default.
        amp: whether the network runs in bfloat16; None leaves that to the device (see `precision.py`).
        crop: whether a volume's slices are cut to where lungs can be.
        batch_size: slices at a time.
        slices: that the network sees of each, the slice in the middle (see `neighbours.py`).
        reach_px: of the network's grid, seen around what changed (`look_again`).

    Raises:
        ValueError: for a spacing that is not positive.
    """

    def __init__(  # noqa: PLR0913 - filled by keyword from a config
        self,
        network: nn.Module,
        *,
        spacing_mm: float = 1.0,
        window_hu: tuple[float, float] = (-1000, 400),
        device: str | torch.device = "cpu",
        inferer: Inferer | None = None,
        amp: bool | None = None,
        crop: bool = True,
        batch_size: int = 1,
        slices: int = 3,
        reach_px: int = 96,
    ) -> None:
        if not spacing_mm > 0:
            raise ValueError(f"Segmenter needs a positive spacing_mm, got {spacing_mm}.")
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.spacing_mm = spacing_mm
        self.window = Window(*window_hu)
        self.inferer = inferer or SimpleInferer()
        self.amp = use_bfloat16(self.device, amp)
        self.crop = crop
        self.batch_size = batch_size
        self.slices = slices
        self.reach_px = reach_px
        self.runner = fuse(self.network, amp=self.amp) if self.device.type == "cpu" else self.network

    def __call__(self, hu: np.ndarray, spacing_mm: tuple[float, float]) -> dict[str, np.ndarray]:
        """Probabilities of one slice.

        Args:
            hu: int16 (H, W).
            spacing_mm: (row, column).

        Returns:
            `lung` (nodules included) and `nodule`, each float32 (H, W) in [0, 1].

        Raises:
            ValueError: when the slice has not two axes, or the spacing is not positive.
        """
        if hu.ndim != 2:
            raise ValueError(
                f"Expected one slice (H, W) in HU, got shape {hu.shape}. Call the segmenter slice by slice."
            )
        plane = torch.from_numpy(np.ascontiguousarray(hu))[None]
        shown = neighbour_table(1, spacing_mm[0], self.slices)
        _, maps = self._probabilities(plane, shown, spacing_mm, Box.whole(hu.shape))
        return dict(zip(CHANNELS, maps[0].cpu().numpy(), strict=True))

    def volume(self, hu: Tensor, spacing_mm: tuple[float, float, float], *, progress: bool = False) -> Tensor:
        """Probabilities of a scan, float16 (2, D, H, W) on the CPU.

        Args:
            hu: (D, H, W), int16 or float.
            spacing_mm: (slice, row, column).
            progress: whether a bar is shown.

        Raises:
            ValueError: when the scan has not three axes, or a spacing is not positive.
        """
        if hu.ndim != 3 or 0 in hu.shape:
            raise ValueError(f"Expected a scan (D, H, W) in HU, got shape {tuple(hu.shape)}.")
        _check_spacing(spacing_mm)
        maps = torch.zeros((len(CHANNELS), *hu.shape), dtype=torch.float16)
        boxes = lung_boxes(hu, spacing_mm) if self.crop else [Box.whole((hu.shape[1], hu.shape[2]))] * len(hu)
        shown = neighbour_table(len(hu), spacing_mm[0], self.slices)
        starts = range(0, len(hu), self.batch_size)
        with self._workers() as workers:
            done = workers.map(lambda start: self._fill(maps, hu, shown, spacing_mm[1:], boxes, start), starts)
            for _ in tqdm(done, total=len(starts), desc="slices", unit="batch", disable=None if progress else True):
                pass
        return maps

    @contextmanager
    def _workers(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that take a batch each: on a CPU one a core, which never wait for one another within a batch."""
        cores = torch.get_num_threads()
        if self.device.type != "cpu":
            with ThreadPoolExecutor(1) as workers:
                yield workers
            return
        try:
            with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as workers:
                yield workers
        finally:
            torch.set_num_threads(cores)

    def _fill(
        self,
        maps: Tensor,
        hu: Tensor,
        shown: Tensor,
        spacing_mm: tuple[float, float],
        boxes: list[Box | None],
        start: int,
    ) -> None:
        """Runs one batch of slices and writes its probabilities into the maps."""
        chosen = [index for index in range(start, min(start + self.batch_size, len(hu))) if boxes[index]]
        if not chosen:
            return
        first, last = chosen[0], chosen[-1] + 1
        box = _union([box for box in boxes[first:last] if box])
        lowest, highest = int(shown[first:last].min()), int(shown[first:last].max())
        place, values = self._probabilities(hu[lowest : highest + 1], shown[first:last] - lowest, spacing_mm, box)
        maps[(slice(None), slice(first, last), *place.index)] = values.movedim(1, 0).half().cpu()

    def with_network(self, network: nn.Module) -> Self:
        """The same segmenter for another network."""
        return type(self)(
            network,
            spacing_mm=self.spacing_mm,
            window_hu=(self.window.low_hu, self.window.high_hu),
            device=self.device,
            inferer=self.inferer,
            amp=self.amp,
            crop=self.crop,
            batch_size=self.batch_size,
            slices=self.slices,
            reach_px=self.reach_px,
        )

    def look(self, hu: Tensor, spacing_mm: tuple[float, float]) -> Look:
        """Probabilities of one slice (H, W) as far as it can show lung, to be gone on with by `look_again`.

        What the network sees begins at whole pixels of its coarsest level, counted from the slice's corner: a box that
        is a little larger moves no probability.
        """
        _check_spacing(spacing_mm)
        own, thick = (hu.shape[0], hu.shape[1]), (spacing_mm[0], *spacing_mm)
        grid, whole = self._grid(own, spacing_mm), Box.whole(own)
        box = (lung_boxes(hu[None], thick)[0] or whole) if self.crop else whole
        part = source_box(box, own, grid).aligned(getattr(self.network, "multiple", 32), Box.whole(grid))
        place = covered(part, grid, own) or box
        maps = torch.zeros((len(CHANNELS), *own), dtype=torch.float16)
        maps[(slice(None), *place.index)] = self._within(part, place, hu[None], self._alone, spacing_mm)[0].half().cpu()
        return Look(part, maps)

    def look_again(self, look: Look, hu: Tensor, spacing_mm: tuple[float, float], changed: Sequence[Box]) -> Look:
        """The probabilities of a slice that is one which was looked at, but for some boxes.

        The network sees them and `reach_px` around them, and probabilities up to half as far from them are taken anew.
        Its field is wider, so they are not quite those of the whole slice (docs/design.md says how far off).

        Args:
            look: at the other slice.
            hu: (H, W).
            spacing_mm: (row, column), as in that look.
            changed: where the two may differ.
        """
        own, maps = (hu.shape[0], hu.shape[1]), look.maps.clone()
        grid, multiple = self._grid(own, spacing_mm), getattr(self.network, "multiple", 32)
        for box in changed:
            near = source_box(box, own, grid)
            kept = near.grown(self.reach_px // 2).within(look.part)
            place = covered(kept, grid, own) if kept else None
            if place is None:
                continue  # what lies outside all that was looked at shows no lung
            seen = near.grown(self.reach_px).aligned(multiple, look.part)
            probabilities = self._within(seen, place, hu[None], self._alone, spacing_mm)
            maps[(slice(None), *place.index)] = probabilities[0].half().cpu()
        return Look(look.part, maps)

    @property
    def _alone(self) -> Tensor:
        return neighbour_table(1, self.spacing_mm, self.slices)

    def _grid(self, own: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[int, int]:
        return resampled_shape(own, spacing_mm=spacing_mm, target_mm=self.spacing_mm)

    def _part(self, box: Box, own: tuple[int, int], spacing_mm: tuple[float, float]) -> Box:
        """At least `box` on the network's grid."""
        grid = self._grid(own, spacing_mm)
        # Whole pixels of the network's coarsest level, which it would fill up with repeated borders otherwise.
        return source_box(box, own, grid).rounded(getattr(self.network, "multiple", 32), grid)

    def _probabilities(
        self, hu: Tensor, shown: Tensor, spacing_mm: tuple[float, float], box: Box
    ) -> tuple[Box, Tensor]:
        """At least `box` of the slices whose neighbours are `shown` (B, slices), indices into hu (n, H, W).

        Returns:
            The box that was done, and its probabilities float32 (B, 2, h, w).
        """
        _check_spacing(spacing_mm)
        own = (hu.shape[-2], hu.shape[-1])
        part = self._part(box, own, spacing_mm)
        place = covered(part, self._grid(own, spacing_mm), own) or box
        return place, self._within(part, place, hu, shown, spacing_mm)

    @torch.inference_mode()
    def _within(self, part: Box, place: Box, hu: Tensor, shown: Tensor, spacing_mm: tuple[float, float]) -> Tensor:
        """Probabilities float32 (B, 2, h, w) of `place`, by a network that sees `part` of its grid."""
        own = (hu.shape[-2], hu.shape[-1])
        grid = self._grid(own, spacing_mm)
        held = source_box(part, grid, own)
        planes = hu[(slice(None), *held.index)].to(self.device).float().clamp(min=CT_RANGE_HU[0])[:, None]
        planes = resample_part(planes, grid, part, held=held, extent=own)[:, 0][shown.to(self.device)]
        logits = self._logits(self.window.to_unit(planes, clip=True))
        return torch.sigmoid(resample_part(logits, own, place, held=part, extent=grid))

    def _logits(self, unit: Tensor) -> Tensor:
        unit = unit.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return self._applied(unit).float()

    def _applied(self, unit: Tensor) -> Tensor:
        """The network through the inferer; by itself on what fits a window, which MONAI's would enlarge to it."""
        window = getattr(self.inferer, "roi_size", None)
        if window is not None and all(size <= side for size, side in zip(unit.shape[2:], window, strict=True)):
            return self.runner(unit)
        return self.inferer(unit, self.runner)


class VolumeInferer(Inferer):
    """Applies a segmenter to volumes, for MONAI's evaluators and for what calls `inferer(inputs, network)`.

    Args:
        segmenter: whose network is used unless another one is given.
        progress: whether a bar is shown.
    """

    def __init__(self, segmenter: Segmenter, *, progress: bool = True) -> None:
        self.segmenter = segmenter
        self.progress = progress

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor] | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Probabilities float16 (B, 2, H, W, D) of volumes (B, 1, H, W, D) in HU, axes posterior, left, superior.

        Args:
            inputs: with its spacing, when it is a MetaTensor; at the network's spacing otherwise.
            network: another one than the segmenter's, if any.
            *args: not used.
            **kwargs: not used.
        """
        other = isinstance(network, nn.Module) and network is not self.segmenter.network
        segmenter = self.segmenter.with_network(network) if other else self.segmenter
        volumes = [self._volume(volume, segmenter) for volume in inputs]
        return torch.stack(volumes) if len(volumes) > 1 else volumes[0][None]  # stacking copies

    def _volume(self, volume: Tensor, segmenter: Segmenter) -> Tensor:
        row, column, between = (segmenter.spacing_mm,) * 3
        if isinstance(volume, MetaTensor):
            row, column, between = (float(mm) for mm in volume.pixdim[:3])
            volume = volume.as_tensor()
        maps = segmenter.volume(volume[0].movedim(-1, 0).contiguous(), (between, row, column), progress=self.progress)
        return maps.movedim(1, -1)


def _check_spacing(spacing_mm: tuple[float, ...]) -> None:
    if not min(spacing_mm) > 0:
        raise ValueError(f"Expected a positive spacing in mm along each axis, got {tuple(spacing_mm)}.")


def _union(boxes: list[Box]) -> Box:
    box = boxes[0]
    for other in boxes[1:]:
        box = box.union(other)
    return box
