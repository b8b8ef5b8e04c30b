"""Which part of a slice depends on its nodules, and which part must be enhanced to get that one.

An enhancer with a receptive field of 2 r + 1 pixels changes, beside the windows of the nodules, r pixels around them;
to compute those as in the whole slice it must see r more. Regions begin at multiples of its alignment.
"""

from collections.abc import Iterable
from typing import NamedTuple

from lungsynth.placement.lung_shape import Box

__all__ = ["Region", "grown", "regions_of"]


class Region(NamedTuple):
    """`changed` is what becomes of the slice, `seen` what the enhancer must see for it."""

    changed: Box
    seen: Box

    @property
    def inside(self) -> tuple[slice, slice]:
        """Where `changed` lies in `seen`."""
        top, left, bottom, right = self.changed
        return (
            slice(top - self.seen.row_from, bottom - self.seen.row_from),
            slice(left - self.seen.column_from, right - self.seen.column_from),
        )


def regions_of(
    windows: Iterable[Box], shape: tuple[int, int], *, receptive_field_px: int, alignment_px: int
) -> list[Region]:
    """The regions of a slice that its nodules touch; those that meet are one.

    Args:
        windows: outside which the slice is its lung.
        shape: (H, W) of the slice.
        receptive_field_px: of the enhancer.
        alignment_px: of the enhancer.
    """
    reach = receptive_field_px // 2
    changed = _joined([grown(window, reach, shape) for window in windows])
    return [Region(box, _aligned(grown(box, reach, shape), alignment_px)) for box in changed]


def grown(box: Box, margin_px: int, shape: tuple[int, ...]) -> Box:
    """A box with a margin, cut off at the edges of the slice."""
    return Box(
        max(0, box.row_from - margin_px),
        max(0, box.column_from - margin_px),
        min(shape[0], box.row_to + margin_px),
        min(shape[1], box.column_to + margin_px),
    )


def _aligned(box: Box, alignment_px: int) -> Box:
    top, left = (start // alignment_px * alignment_px for start in (box.row_from, box.column_from))
    return Box(top, left, box.row_to, box.column_to)


def _joined(boxes: list[Box]) -> list[Box]:
    """Boxes that meet become the one around them, until none meet."""
    done: list[Box] = []
    for box in boxes:
        while meeting := [other for other in done if _meet(box, other)]:
            done = [other for other in done if other not in meeting]
            tops, lefts, bottoms, rights = zip(box, *meeting, strict=True)
            box = Box(min(tops), min(lefts), max(bottoms), max(rights))
        done.append(box)
    return done


def _meet(a: Box, b: Box) -> bool:
    rows = a.row_from < b.row_to and b.row_from < a.row_to
    return rows and a.column_from < b.column_to and b.column_from < a.column_to
