"""Enhanced lungs, each made once: in memory, and in a folder where there is one, by the lung and what enhanced it."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lungsynth.compositing.overlay import LungBackground
from lungsynth.enhancement.changes import Changes
from lungsynth.enhancement.label_check import SHARE_STEPS
from lungsynth.io.atomic import replacing
from lungsynth.types import HuPlane, Plane

__all__ = ["EnhancedLung", "EnhancedLungs"]

_IN_MEMORY = 1024  # 1 MB each at 512 x 512


class EnhancedLung(NamedTuple):
    """A lung after enhancement.

    Args:
        hu: HU.
        share: of the enhancer's change that was left at each pixel; None where that is all of it everywhere.
        changes: from the lung before.
    """

    hu: HuPlane
    share: Plane | None
    changes: Changes


class EnhancedLungs:
    """Gives the enhanced lung of a hash, and makes it when it is not there.

    Args:
        make: (lung) -> HU and share, see `EnhancedLung`.
        key: of what beside the lung decides over the result, see `identity.enhancement_key`.
        folder: where files `<lung>-<key>.npy` are kept, int16 (2, H, W): HU and share * 256; None keeps none.
    """

    def __init__(
        self, make: Callable[[LungBackground], tuple[HuPlane, Plane | None]], *, key: str, folder: Path | None = None
    ) -> None:
        self._make = make
        self._key = key
        self._folder = folder
        self._kept: OrderedDict[str, EnhancedLung] = OrderedDict()

    def get(self, lung_hash: str, background: LungBackground) -> EnhancedLung:
        """The enhanced lung; `lung_hash` is that of its asset."""
        if lung_hash not in self._kept:
            hu, share = self._read(lung_hash, background) or self._make_and_write(lung_hash, background)
            self._kept[lung_hash] = EnhancedLung(hu, share, Changes.of(np.asarray(background.hu), hu, background.label))
            if len(self._kept) > _IN_MEMORY:
                self._kept.popitem(last=False)
        self._kept.move_to_end(lung_hash)
        return self._kept[lung_hash]

    def _path(self, lung_hash: str) -> Path | None:
        return self._folder / f"{lung_hash}-{self._key}.npy" if self._folder else None

    def _read(self, lung_hash: str, background: LungBackground) -> tuple[HuPlane, Plane | None] | None:
        path = self._path(lung_hash)
        if path is None or not path.is_file():
            return None
        try:
            stored = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None  # damaged: it is made again
        if stored.shape != (2, *background.hu.shape) or stored.dtype != np.int16:
            return None
        share = None if (stored[1] == SHARE_STEPS).all() else (stored[1] / np.float32(SHARE_STEPS)).astype(np.float32)
        return stored[0], share

    def _make_and_write(self, lung_hash: str, background: LungBackground) -> tuple[HuPlane, Plane | None]:
        hu, share = self._make(background)
        if path := self._path(lung_hash):
            steps = np.full(hu.shape, SHARE_STEPS) if share is None else share * SHARE_STEPS
            with replacing(path) as part, part.open("wb") as file:
                np.save(file, np.stack([hu, steps.astype(np.int16)]))
        return hu, share
