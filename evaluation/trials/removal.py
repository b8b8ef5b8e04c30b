"""A nodule painted over with lung of the same slice, so that another one can be put in its place."""

import numpy as np
from jaxtyping import Bool, Int16
from scipy import ndimage

__all__ = ["without_nodule"]

_RIM_PX = 2  # around what was drawn: a nodule's faint rim, which readers leave out
_MARGIN_PX = 3  # what is replaced, and fades into what stays
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
    nodule = ndimage.binary_dilation(drawn, iterations=_RIM_PX)
    region = ndimage.binary_dilation(drawn, iterations=_MARGIN_PX) & (ndimage.binary_dilation(lung) | drawn)
    ring = ndimage.binary_dilation(region, iterations=_RING_PX) & ~region & lung
    move = _best_move(hu, np.argwhere(region), np.argwhere(ring), nodule | ~lung, rng)
    if move is None:
        return None
    faded = ndimage.gaussian_filter(nodule.astype(np.float64), _FADE_PX)
    weight = np.where(drawn, 1.0, faded * region)
    moved = np.roll(hu, (-move[0], -move[1]), axis=(0, 1))
    return np.rint(hu * (1 - weight) + moved * weight).astype(np.int16)


def _best_move(
    hu: np.ndarray, inside: np.ndarray, around: np.ndarray, forbidden: np.ndarray, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Rows and columns to the piece that replaces a region; the pixels of it and of its ring are (n, 2)."""
    if not len(around):
        return None
    both = np.concatenate([inside, around])
    low, high = -both.min(axis=0), np.array(hu.shape) - 1 - both.max(axis=0)
    values, stays = hu.astype(np.float64), hu[tuple(around.T)]
    best, least = None, np.inf
    for move in rng.integers(-_REACH_PX, _REACH_PX + 1, size=(_TRIES, 2)):
        if (move < low).any() or (move > high).any():
            continue
        source = tuple((inside + move).T)
        if forbidden[source].any():
            continue
        mismatch = np.abs(values[tuple((around + move).T)] - stays).mean()
        vessels = np.maximum(values[source] - _LUNG_HU, 0).mean()
        if mismatch + vessels / 2 < least:
            best, least = (int(move[0]), int(move[1])), mismatch + vessels / 2
    return best
