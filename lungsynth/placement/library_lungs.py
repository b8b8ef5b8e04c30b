"""The lungs of a library as a plan sees them: measured one at a time, forgotten again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lungsynth.ct.write import read_plane
from lungsynth.errors import InputError
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.lung_shape import LungShape
from lungsynth.types import MaskPlane

__all__ = ["LibraryLungs"]

_SAMPLE = 48  # lungs that say enough of a mean shape


@dataclass(frozen=True, eq=False, kw_only=True)
class LibraryLungs(Sequence[LungShape]):
    """Lungs in the order of their hashes; asking for one reads and measures it.

    Args:
        library: holds their arrays.
        assets: of the lungs.
        vessel_masks: folder with `<slice id>.nii.gz` of vessels and airways (not 0), on the grid of real lungs; where
            there is none, the HU tell.
    """

    library: AssetLibrary
    assets: Sequence[Asset]
    vessel_masks: Path | None = None

    @classmethod
    def of(cls, library: AssetLibrary, *, real_voxels: bool = True, vessel_masks: Path | None = None) -> "LibraryLungs":
        """The lungs of a library, or those without a patient's voxels.

        Raises:
            InputError: when there is none.
        """
        assets = [asset for asset in library if asset.kind == "lung" and (real_voxels or asset.source != "real")]
        if not assets:
            raise InputError(f"{library.folder}: a plan needs lungs, the library has none that may be used.")
        return cls(library=library, assets=assets, vessel_masks=vessel_masks)

    @property
    def hashes(self) -> list[int]:
        """Hashes of the lungs as numbers."""
        return [int(asset.hash, 16) for asset in self.assets]

    def __len__(self) -> int:
        return len(self.assets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        asset = self.assets[index]
        hu, mask = self.library.load(asset.hash, keep=False)
        return LungShape.from_mask(mask > 0, spacing_mm=asset.spacing_mm, hu=hu, vessels=self._vessels(asset))

    def __iter__(self) -> Iterator[LungShape]:
        return (self[index] for index in range(len(self)))

    def first(self, count: int) -> "LibraryLungs":
        """The first so many."""
        return replace(self, assets=self.assets[:count])

    def sample(self) -> list[LungShape]:
        """Some of the lungs, evenly spread."""
        places = np.unique(np.linspace(0, len(self) - 1, min(_SAMPLE, len(self))).astype(int))
        return [self[int(place)] for place in places]

    def _vessels(self, asset: Asset) -> MaskPlane | None:
        path = None if self.vessel_masks is None else self.vessel_masks / f"{asset.origin}.nii.gz"
        if path is None or asset.source != "real" or not path.is_file():
            return None
        return read_plane(path)[0] != 0
