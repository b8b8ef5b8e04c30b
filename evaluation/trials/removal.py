"""A nodule painted over with lung of the same slice, so that another one can be put in its place."""

import numpy as np
from jaxtyping import Bool, Int16
from scipy import ndimage

__all__ = ["without_nodule"]

_MARGIN_PX = 3  # around what was drawn; readers leave out a nodule's faint rim
_RING_PX = 3  # in which what is painted must go with what stays
_REACH_PX = 60
_TRIES = 2000
_LUNG_HU = -800  # what is denser is vessel; a source with few of them is preferred, half as much as one that goes well
_FADE_PX = 1.0


def without_nodule(
    hu: Int16[np.ndarray, "height width"],
    drawn: Bool[np.ndarray, "height width"],
    lung: Bool[np.ndarray, "height width"],
    *,
    rng: np.random.Generator,
) -> Int16[np.ndarray, "height width"] | None:
    """The slice without its nodule; None where no lung nearby can take its place.

    What takes it is a piece of the same lung, moved: of many, the one that goes best with the ring around the nodule.

    Args:
        hu: the slice.
        drawn: the nodule, as far as any reader drew it.
        lung: the lungs, nodule included.
        rng: draws where pieces are looked for.
    """
    region = ndimage.binary_dilation(drawn, iterations=_MARGIN_PX) & (ndimage.binary_dilation(lung) | drawn)
    ring = ndimage.binary_dilation(region, iterations=_RING_PX) & ~region & lung
    move = _best_move(hu, region, ring, ndimage.binary_dilation(drawn, iterations=2) | ~lung, rng)
    if move is None:
        return None
    faded = ndimage.gaussian_filter(ndimage.binary_dilation(drawn, iterations=2).astype(np.float64), _FADE_PX)
    weight = np.where(drawn, 1.0, faded * region)
    moved = np.roll(hu, (-move[0], -move[1]), axis=(0, 1))
    return np.rint(hu * (1 - weight) + moved * weight).astype(np.int16)


def _best_move(
    hu: np.ndarray, region: np.ndarray, ring: np.ndarray, forbidden: np.ndarray, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Rows and columns from the region to the piece that replaces it."""
    inside, around = np.argwhere(region), np.argwhere(ring)
    if not len(around):
        return None
    low, high = -np.argwhere(region | ring).min(axis=0), np.array(hu.shape) - 1 - np.argwhere(region | ring).max(axis=0)
    best, least = None, np.inf
    for move in rng.integers(-_REACH_PX, _REACH_PX + 1, size=(_TRIES, 2)):
        if (move < low).any() or (move > high).any() or forbidden[tuple((inside + move).T)].any():
            continue
        mismatch = np.abs(hu[tuple(around.T)].astype(np.float64) - hu[tuple((around + move).T)]).mean()
        vessels = np.maximum(hu[tuple((inside + move).T)].astype(np.float64) - _LUNG_HU, 0).mean()
        if mismatch + vessels / 2 < least:
            best, least = (int(move[0]), int(move[1])), mismatch + vessels / 2
    return best
