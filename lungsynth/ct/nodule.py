"""`ReadNodule`: a nodule as its readers drew it, votes a voxel."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from lungsynth.errors import InputError
from lungsynth.geometry import voxel_to_lps
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


def nodules_from_mask(
    mask: LabelVolume, affine: Affine, *, values: Sequence[int] = (1,), votes: bool = False
) -> tuple[ReadNodule, ...]:
    """Parts a mask into nodules. Largest first.

    With one value, voxels that touch, by corners too, are one nodule; with several, each value is one, in however many
    pieces.

    Args:
        mask: (depth, height, width).
        affine: of the volume, for the centres.
        values: those that are nodule.
        votes: values count the readers who see nodule there.
    """
    inside = np.isin(mask, list(values))
    if votes or len(values) == 1:
        parts, _ = ndimage.label(inside, structure=np.ones((3, 3, 3)))
    else:
        parts = np.where(inside, mask, 0)
    counts = np.where(inside, mask, 0) if votes else inside.astype(np.uint8)
    nodules = []
    for index, box in enumerate(ndimage.find_objects(parts), start=1):
        if box is None:
            continue
        seen = np.where(parts[box] == index, counts[box], 0).astype(np.uint8)
        offset = (box[0].start, box[1].start, box[2].start)
        consensus = seen >= min(2, int(seen.max()))
        centre = mask_centre_lps(consensus, offset, affine)
        nodules.append(ReadNodule(votes=seen, offset=offset, readers=int(seen.max()), centre_lps_mm=centre))
    return tuple(sorted(nodules, key=lambda nodule: -int((nodule.votes > 0).sum())))


def mask_centre_lps(inside: np.ndarray, offset: tuple[int, int, int], affine: Affine) -> tuple[float, float, float]:
    """LPS millimetres of the centre of mass of a bool mask (depth, height, width) whose box starts at `offset`."""
    x, y, z = voxel_to_lps(affine, np.argwhere(inside).mean(axis=0) + offset).tolist()
    return x, y, z
