"""`ReadNodule`: a nodule as its readers drew it, votes a voxel."""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from lungsynth.ct.volume import voxel_to_lps
from lungsynth.errors import InputError
from lungsynth.types import Affine, LabelVolume

__all__ = ["ReadNodule", "mask_centre_lps", "nodules_from_mask"]


@dataclass(frozen=True, kw_only=True)
class ReadNodule:
    """A nodule drawn by one or more readers.

    Args:
        votes: uint8 (depth, height, width), how many readers hold the voxel for nodule; cut to the nodule's box.
        offset: (slice, row, column) of the box in its volume.
        readers: how many readers drew it.
        centre_lps_mm: (x, y, z), centre of mass of the consensus mask.
        attributes: the readers' mean ratings by name, such as texture and malignancy; empty without ratings.
        reader_diameter_mm: mean over the readers of their own longest in-plane diameter.

    Raises:
        InputError: when nobody voted, or more voted than readers there are.
    """

    votes: LabelVolume
    offset: tuple[int, int, int]
    readers: int
    centre_lps_mm: tuple[float, float, float]
    attributes: dict[str, float] = field(default_factory=dict)
    reader_diameter_mm: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= int(self.votes.max(initial=0)) <= self.readers:
            raise InputError(
                f"A nodule needs 1 to {self.readers} votes in some voxel (its number of readers), "
                f"got {int(self.votes.max(initial=0))}."
            )

    @property
    def consensus_votes(self) -> int:
        """Votes that make the consensus mask: 2 where two readers agree anywhere, else 1."""
        return min(2, int(self.votes.max()))

    def full_votes(self, shape: tuple[int, int, int]) -> LabelVolume:
        """The votes in a volume of this (depth, height, width), 0 outside the box."""
        full = np.zeros(shape, np.uint8)
        box = tuple(slice(start, start + size) for start, size in zip(self.offset, self.votes.shape, strict=True))
        full[box] = self.votes
        return full


def nodules_from_mask(mask: LabelVolume, affine: Affine) -> tuple[ReadNodule, ...]:
    """Parts a mask into nodules: voxels that touch, by corners too, are one nodule. Largest first.

    Args:
        mask: (depth, height, width), above 0 where one reader (or a finished consensus) sees nodule.
        affine: of the volume, for the centres.
    """
    parts, _ = ndimage.label(mask > 0, structure=np.ones((3, 3, 3)))
    nodules = []
    for index, box in enumerate(ndimage.find_objects(parts), start=1):
        votes = (parts[box] == index).astype(np.uint8)
        offset = (box[0].start, box[1].start, box[2].start)
        nodules.append(
            ReadNodule(votes=votes, offset=offset, readers=1, centre_lps_mm=mask_centre_lps(votes > 0, offset, affine))
        )
    return tuple(sorted(nodules, key=lambda nodule: -int(nodule.votes.sum())))


def mask_centre_lps(inside: np.ndarray, offset: tuple[int, int, int], affine: Affine) -> tuple[float, float, float]:
    """LPS millimetres of the centre of mass of a bool mask (depth, height, width) whose box starts at `offset`."""
    x, y, z = voxel_to_lps(affine, np.argwhere(inside).mean(axis=0) + offset).tolist()
    return x, y, z
