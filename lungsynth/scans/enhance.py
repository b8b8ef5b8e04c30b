"""Inserted nodules after the CycleGAN, and what the segmentation bundle finds of them.

A scan is real and needs no enhancement but where a nodule was put. What the network changes of the scan alone is
subtracted from what it changes of the scan with nodules: the rest is what it makes of the nodules. Its own noise goes,
and the noise that is correlated from slice to slice stays. Voxels that no nodule changed stay as they are, bit for bit.

The label check looks at the slices of a nodule and some around them. A nodule that becomes less probable, or beside
which something new is found, is put back as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from lungsynth.bundles import open_bundle, read_weights
from lungsynth.compositing.render import Enhancer
from lungsynth.enhancement.label_check import LABEL_CHECK_MARGIN, LABEL_CHECK_TOLERANCE, LabelCheck
from lungsynth.enhancement.stage import Region, enhancement_identity, regions_of
from lungsynth.geometry import Box
from lungsynth.hounsfield import CT_RANGE_HU
from lungsynth.scans.insert import InsertedScan
from lungsynth.types import MIN_HIT_RADIUS_MM, Candidates, HuPlane, HuVolume, MaskPlane

__all__ = [
    "NoduleFinding",
    "ScanCheck",
    "ScanEnhancement",
    "open_scan_check",
    "open_scan_enhancement",
    "scan_enhancement_identity",
]

_AROUND = 2  # slices on either side of a nodule that the detector sees, too
_REACH_MM = 12.0  # of a nodule's change beyond its mask; a soft edge ends sooner
_JOINED_PX = 4  # changes nearer than this are enhanced together


class NoduleFinding(NamedTuple):
    """What the segmentation bundle says of an inserted nodule.

    Args:
        probability: of the most probable candidate on it; 0 where there is none.
        found: whether that counts as found.
    """

    probability: float
    found: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class _Stack:
    """Slices that show some of the nodules, and which (indices)."""

    first: int
    last: int
    nodules: tuple[int, ...]

    @property
    def slices(self) -> slice:
        return slice(self.first, self.last)


class ScanCheck:
    """What the segmentation bundle finds in scans, near their inserted nodules.

    Args:
        check: with the detector.
    """

    def __init__(self, check: LabelCheck) -> None:
        self.check = check

    def findings(self, before: HuVolume, scan: InsertedScan) -> tuple[list[NoduleFinding], int]:
        """Of each nodule, and how many candidates are found beside them that the scan alone does not show."""
        findings, n_new = [NoduleFinding(0.0, found=False)] * len(scan.nodules), 0
        for stack in _stacks(scan):
            was, now = self._candidates(before, stack, scan), self._candidates(scan.volume.hu, stack, scan)
            on = self._on_nodules(now, stack, scan)
            for column, index in enumerate(stack.nodules):
                probability = float(np.where(on[:, column], now[:, 4], 0.0).max(initial=0.0))
                findings[index] = NoduleFinding(probability, found=probability >= self.check.operating_point)
            n_new += self._changes(was, now, stack, scan).n_new
        return findings, n_new

    def worse(self, scan: InsertedScan, enhanced: HuVolume) -> set[int]:
        """The nodules (indices) that enhancing would cost, or beside which it would show something new."""
        minded: set[int] = set()
        for stack in _stacks(scan):
            was, now = self._candidates(scan.volume.hu, stack, scan), self._candidates(enhanced, stack, scan)
            changes = self._changes(was, now, stack, scan)
            minded |= {index for index, fallen in zip(stack.nodules, changes.fallen, strict=True) if fallen}
            if len(changes.risen):
                centres = _centres(scan, stack.nodules)
                nearest = _apart_mm(changes.risen, centres, scan.volume.spacing_mm).argmin(axis=1)
                minded |= {stack.nodules[k] for k in nearest.tolist()}
        return minded

    def _candidates(self, hu: HuVolume, stack: _Stack, scan: InsertedScan) -> Candidates:
        """Of a stack, in voxels of the scan."""
        found = self.check.detector(np.ascontiguousarray(hu[stack.slices]), scan.volume.spacing_mm)["candidates"]
        candidates = np.asarray(found, dtype=np.float64).reshape(-1, 5)
        return candidates + np.array([stack.first, 0, 0, 0, 0])

    def _changes(self, was: Candidates, now: Candidates, stack: _Stack, scan: InsertedScan) -> Any:
        return self.check.changes(
            was,
            now,
            on_nodules=lambda candidates: self._on_nodules(candidates, stack, scan),
            apart_mm=lambda candidates, others: _apart_mm(candidates, others[:, :3], scan.volume.spacing_mm),
        )

    @staticmethod
    def _on_nodules(candidates: Candidates, stack: _Stack, scan: InsertedScan) -> np.ndarray:
        """Which candidate is on which nodule of a stack: on its mask, or within its radius of its centre."""
        radii = [max(scan.nodules[index].diameter_mm / 2, MIN_HIT_RADIUS_MM) for index in stack.nodules]
        near = _apart_mm(candidates, _centres(scan, stack.nodules), scan.volume.spacing_mm) <= np.array(radii)
        limits = np.array(scan.instances.shape) - 1
        at = np.clip(np.rint(candidates[:, :3]).astype(int), 0, limits)
        numbers = scan.instances[at[:, 0], at[:, 1], at[:, 2]]
        marked: np.ndarray = near | (numbers[:, None] == np.array(stack.nodules)[None] + 1)
        return marked


class ScanEnhancement:
    """`(scan as it was, scan with nodules) -> scan with enhanced nodules`.

    Args:
        enhance: the enhancer of cyclegan_bundle.
        check: of the labels; None leaves all changes.
    """

    def __init__(self, enhance: Enhancer, check: ScanCheck | None = None) -> None:
        self._enhance, self._check = enhance, check

    def __call__(self, before: HuVolume, scan: InsertedScan) -> tuple[InsertedScan, tuple[bool, ...]]:
        """Enhances the nodules of a scan.

        Args:
            before: the scan without them.
            scan: with them; its labels stay as they are.

        Returns:
            The scan, and of each nodule whether it is an enhanced one.
        """
        hu = scan.volume.hu.copy()
        changed = hu != before
        for index in np.flatnonzero(changed.any(axis=(1, 2))).tolist():
            hu[index] = self._plane(before[index], scan.volume.hu[index], changed[index], scan.instances[index] > 0)
        refused = self._check.worse(scan, hu) if self._check else set()
        for index in sorted(refused):
            zone = _zone(scan, index)
            hu[zone] = scan.volume.hu[zone]
        nodules = tuple(
            replace(nodule, mean_hu=float(hu[nodule.box][scan.instances[nodule.box] == number].mean()))
            for number, nodule in enumerate(scan.nodules, start=1)
        )
        enhanced = replace(scan, volume=replace(scan.volume, hu=hu), nodules=nodules)
        return enhanced, tuple(index not in refused for index in range(len(scan.nodules)))

    def _plane(self, before: HuPlane, composite: HuPlane, changed: MaskPlane, nodule: MaskPlane) -> HuPlane:
        """One slice: the composite, and what the network makes of the nodules where they changed it."""
        result = composite.astype(np.int32)
        for region in self._regions(changed):
            at, seen = region.changed.pixels, region.seen.pixels
            none = np.zeros_like(nodule[seen])
            with_nodule, alone = (
                self._enhance(np.ascontiguousarray(plane[seen]), mask)[region.inside].astype(np.int32) - plane[at]
                for plane, mask in ((composite, nodule[seen]), (before, none))
            )
            result[at] += np.where(changed[at], with_nodule - alone, 0)
        enhanced: HuPlane = np.clip(result, *CT_RANGE_HU).astype(np.int16)
        return enhanced

    def _regions(self, changed: MaskPlane) -> Sequence[Region]:
        shape = changed.shape[0], changed.shape[1]
        if (field := getattr(self._enhance, "receptive_field_px", None)) is None:
            whole = Box(0, 0, *shape)
            return [Region(whole, whole)]
        pieces, _ = ndimage.label(ndimage.binary_dilation(changed, iterations=_JOINED_PX))
        boxes = [
            Box(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(pieces)
        ]
        alignment = getattr(self._enhance, "alignment_px", 1)
        return regions_of(boxes, shape, receptive_field_px=field, alignment_px=alignment)


def open_scan_check(bundles: Path) -> ScanCheck:
    """With the detector of a folder of bundles; findings are those at its operating point.

    Raises:
        InputError: when the bundle or its weights cannot be used.
    """
    detector = open_bundle(bundles, "lung_seg", component="detector")
    return ScanCheck(LabelCheck(detector, margin=LABEL_CHECK_MARGIN, tolerance=LABEL_CHECK_TOLERANCE))


def open_scan_enhancement(bundles: Path) -> ScanEnhancement:
    """With the enhancer and the detector of a folder of bundles.

    Raises:
        InputError: when a bundle or its weights cannot be used.
    """
    return ScanEnhancement(open_bundle(bundles, "cyclegan", component="enhancer"), open_scan_check(bundles))


def scan_enhancement_identity(bundles: Path, *, enhance: bool, check: bool) -> dict[str, Any]:
    """What decides over enhanced voxels, and over what is found.

    Raises:
        InputError: when a bundle or its weights cannot be used.
    """
    detector = read_weights(bundles, "lung_seg").sha256 if check else None
    return {"enhancement": enhancement_identity(bundles if enhance else None, label_check=enhance), "check": detector}


def _stacks(scan: InsertedScan) -> list[_Stack]:
    """Slices around each nodule; what overlaps is one."""
    stacks: list[_Stack] = []
    spans = [(nodule.box[0].start, nodule.box[0].stop, index) for index, nodule in enumerate(scan.nodules)]
    for start, stop, index in sorted(spans):
        first, last = max(0, start - _AROUND), min(len(scan.volume.hu), stop + _AROUND)
        if stacks and first < stacks[-1].last:
            earlier = stacks.pop()
            last = max(last, earlier.last)
            stacks.append(_Stack(first=earlier.first, last=last, nodules=(*earlier.nodules, index)))
        else:
            stacks.append(_Stack(first=first, last=last, nodules=(index,)))
    return stacks


def _zone(scan: InsertedScan, index: int) -> tuple[slice, ...]:
    """Where a nodule may have changed the scan."""
    return tuple(
        slice(max(0, part.start - round(_REACH_MM / mm)), part.stop + round(_REACH_MM / mm))
        for part, mm in zip(scan.nodules[index].box, scan.volume.spacing_mm, strict=True)
    )


def _centres(scan: InsertedScan, nodules: Sequence[int]) -> np.ndarray:
    return np.array([scan.nodules[index].centre_voxel for index in nodules]).reshape(-1, 3)


def _apart_mm(candidates: np.ndarray, places: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """From each candidate to each place (slice, row, column), (candidates, places)."""
    away = (candidates[:, None, :3] - places[None, :, :3]) * np.asarray(spacing_mm)
    return np.asarray(np.linalg.norm(away, axis=-1))
