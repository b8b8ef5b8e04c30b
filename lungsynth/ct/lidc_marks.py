"""Readers' contours as voxels: filled rings, marks that mean one nodule, votes. Conventions: `lungsynth.ct.lidc`."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from lungsynth.ct.nodule import ReadNodule, mask_centre_lps
from lungsynth.types import Affine

__all__ = ["ReaderMark", "draw_mark", "fill_ring", "group_marks", "merge_votes"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReaderMark:
    """One nodule as one reader drew it.

    Args:
        reader: number of the reading session.
        mask: bool (depth, height, width), cut to its box.
        offset: (slice, row, column) of the box.
        ratings: by name; empty where the reader gave none.
        diameter_mm: the longest in-plane distance between points of one inclusion contour.
    """

    reader: int
    mask: Bool[np.ndarray, "depth height width"]
    offset: np.ndarray
    ratings: dict[str, float]
    diameter_mm: float

    def centre_mm(self, spacing_mm: tuple[float, float, float]) -> np.ndarray:
        """Centre of mass (3,) along (slice, row, column), from voxel 0."""
        return (np.argwhere(self.mask).mean(axis=0) + self.offset) * spacing_mm


def fill_ring(points: np.ndarray, *, with_chain: bool) -> tuple[Bool[np.ndarray, "height width"], np.ndarray]:
    """What a closed chain of pixels encloses.

    Args:
        points: int (n, 2) as (row, column), in drawing order; gaps are bridged by straight lines.
        with_chain: whether the chain is part of it.

    Returns:
        The mask of the chain's box, and the (row, column) of the box.
    """
    corner = points.min(axis=0)
    chain = np.zeros(points.max(axis=0) - corner + 1, bool)
    for start, stop in zip(points, np.roll(points, -1, axis=0), strict=True):
        steps = int(np.abs(stop - start).max()) + 1
        rows, columns = np.rint(np.linspace(start, stop, steps)).astype(int).T - corner[:, None]
        chain[rows, columns] = True
    filled = ndimage.binary_fill_holes(chain)
    return filled if with_chain else filled & ~chain, corner


def draw_mark(
    rings: Sequence[tuple[np.ndarray, bool]],
    *,
    reader: int,
    ratings: dict[str, float],
    spacing_mm: tuple[float, float, float],
) -> ReaderMark:
    """Fills a reader's contours of one nodule.

    Args:
        rings: voxels (n, 3) as (slice, row, column), all of one slice, and whether the ring includes.
        reader: number of the reading session.
        ratings: by name.
        spacing_mm: (slice, row, column).
    """
    corner = np.min([points.min(axis=0) for points, _ in rings if len(points)], axis=0)
    far = np.max([points.max(axis=0) for points, _ in rings if len(points)], axis=0)
    mask = np.zeros(far - corner + 1, bool)
    for include in (True, False):  # holes are carved when all is drawn
        for points, includes in rings:
            if includes is include and len(points):
                _paint(mask, points - corner, include=include)
    longest = max((_longest_mm(points, spacing_mm) for points, includes in rings if includes), default=0.0)
    return ReaderMark(reader=reader, mask=mask, offset=corner, ratings=ratings, diameter_mm=longest)


def _paint(mask: np.ndarray, points: np.ndarray, *, include: bool) -> None:
    filled, (row, column) = fill_ring(points[:, 1:], with_chain=include)
    window = (points[0, 0], slice(row, row + filled.shape[0]), slice(column, column + filled.shape[1]))
    mask[window] = mask[window] | filled if include else mask[window] & ~filled


def _longest_mm(points: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    in_plane = points[:, 1:] * np.array(spacing_mm[1:])
    if len(in_plane) > 3:
        with suppress(QhullError):  # points on one line have no hull
            in_plane = in_plane[ConvexHull(in_plane).vertices]
    return float(pdist(in_plane).max(initial=0.0))


def group_marks(marks: Sequence[ReaderMark], *, spacing_mm: tuple[float, float, float]) -> list[list[ReaderMark]]:
    """Parts the marks of all readers into nodules, in the order of their first mark."""
    centres = [mark.centre_mm(spacing_mm) for mark in marks]
    pairs = [(i, j) for j in range(len(marks)) for i in range(j)]
    distance = {(i, j): float(np.linalg.norm(centres[i] - centres[j])) for i, j in pairs}
    group = list(range(len(marks)))
    for i, j in sorted(pairs, key=distance.__getitem__):
        near = distance[i, j] <= max(marks[i].diameter_mm, marks[j].diameter_mm) / 2
        if group[i] == group[j] or not (near or _share_voxel(marks[i], marks[j])):
            continue
        one, other = ({mark.reader for k, mark in enumerate(marks) if group[k] == group[end]} for end in (i, j))
        if not one & other:
            low, high = sorted((group[i], group[j]))
            group = [low if number == high else number for number in group]
    return [[marks[k] for k in range(len(marks)) if group[k] == number] for number in sorted(set(group))]


def _share_voxel(one: ReaderMark, other: ReaderMark) -> bool:
    start = np.maximum(one.offset, other.offset)
    stop = np.minimum(one.offset + one.mask.shape, other.offset + other.mask.shape)
    if (start >= stop).any():
        return False
    views = [
        mark.mask[tuple(slice(low, high) for low, high in zip(start - mark.offset, stop - mark.offset, strict=True))]
        for mark in (one, other)
    ]
    return bool((views[0] & views[1]).any())


def merge_votes(marks: Sequence[ReaderMark], affine: Affine) -> ReadNodule:
    """One nodule of its readers' marks: votes a voxel, mean ratings over those who rated, mean diameter."""
    start = np.min([mark.offset for mark in marks], axis=0)
    stop = np.max([mark.offset + mark.mask.shape for mark in marks], axis=0)
    votes = np.zeros(stop - start, np.uint8)
    for mark in marks:
        low = mark.offset - start
        votes[tuple(slice(a, a + size) for a, size in zip(low, mark.mask.shape, strict=True))] += mark.mask
    offset = (int(start[0]), int(start[1]), int(start[2]))
    consensus = votes >= min(2, int(votes.max()))
    return ReadNodule(
        votes=votes,
        offset=offset,
        readers=len(marks),
        centre_lps_mm=mask_centre_lps(consensus, offset, affine),
        attributes=_mean_ratings(mark.ratings for mark in marks),
        reader_diameter_mm=float(np.mean([mark.diameter_mm for mark in marks])),
    )


def _mean_ratings(ratings: Iterable[dict[str, float]]) -> dict[str, float]:
    given: dict[str, list[float]] = {}
    for rating in ratings:
        for name, value in rating.items():
            given.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in given.items()}
