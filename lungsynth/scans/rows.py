"""Rows of `nodules.csv`: of the nodules that were inserted, and of those that the scan had before."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from lungsynth.cohort.patches import sphere_diameter_mm, texture_class
from lungsynth.cohort.series import LabelledScan
from lungsynth.ct.volume import Volume
from lungsynth.geometry import voxel_to_lps
from lungsynth.scans.enhance import NoduleFinding
from lungsynth.scans.insert import InsertedScan
from lungsynth.scans.plan import ScanPlan

__all__ = ["FROM_SCAN", "inserted_rows", "own_rows"]

FROM_SCAN = "scan"  # source of a nodule that was there before
_DIGITS = 3
_ONLY_INSERTED = (
    *("number", "asked_diameter_mm", "distance_mm", "type", "vessel_share", "asset", "origin", "patient"),
    *("enhanced", "found", "found_probability"),
)


def inserted_rows(
    plan: ScanPlan,
    inserted: InsertedScan,
    *,
    enhanced: Sequence[bool] | None = None,
    findings: Sequence[NoduleFinding] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of the nodules of a plan, measured in the scan, as JSON.

    Args:
        plan: of the sample.
        inserted: the sample.
        enhanced: of each nodule, whether it went through the CycleGAN; None where none did.
        findings: of the segmentation bundle; None where it did not look.
    """
    for index, (wanted, cube, place, seen) in enumerate(
        zip(plan.wanted, plan.cubes, plan.places, inserted.nodules, strict=True)
    ):
        yield {
            "number": index + 1,
            "texture": wanted.texture,
            "source": cube.source,
            "diameter_mm": round(seen.diameter_mm, _DIGITS),
            "asked_diameter_mm": round(wanted.diameter_mm * plan.factor, _DIGITS),
            "centre_lps_mm": _rounded(seen.centre_lps_mm),
            "box_lps_mm": _rounded(_box_lps_mm(seen.box, inserted.volume)),
            "centre_voxel": _rounded(seen.centre_voxel),
            "mean_hu": round(seen.mean_hu, 1),
            "distance_mm": place.distance_mm,
            "type": place.type,
            "vessel_share": place.vessel_share,
            "asset": cube.hash,
            "origin": cube.origin,
            "patient": cube.patient or "",
            "enhanced": "" if enhanced is None else enhanced[index],
            "found": "" if findings is None else findings[index].found,
            "found_probability": "" if findings is None else round(findings[index].probability, _DIGITS),
        }


def own_rows(scan: LabelledScan) -> Iterator[dict[str, Any]]:
    """Rows of the nodules that the scan had before, as JSON."""
    volume = scan.volume
    voxel_mm3 = float(np.prod(volume.spacing_mm))
    for nodule in scan.findings.nodules:
        mask = nodule.votes >= nodule.consensus_votes
        inner = ndimage.find_objects(mask.astype(np.uint8))[0]
        box = tuple(slice(o + part.start, o + part.stop) for o, part in zip(nodule.offset, inner, strict=True))
        centre = np.argwhere(mask).mean(axis=0) + nodule.offset
        yield {
            **dict.fromkeys(_ONLY_INSERTED, ""),
            "texture": texture_class(nodule.attributes.get("texture")),
            "source": FROM_SCAN,
            "diameter_mm": round(sphere_diameter_mm(int(mask.sum()), voxel_volume_mm3=voxel_mm3), _DIGITS),
            "centre_lps_mm": _rounded(nodule.centre_lps_mm),
            "box_lps_mm": _rounded(_box_lps_mm(box, volume)),
            "centre_voxel": _rounded(centre.tolist()),
            "mean_hu": round(float(volume.hu[box][mask[inner]].mean()), 1),
        }


def _box_lps_mm(box: tuple[slice, ...], volume: Volume) -> list[float]:
    """Centre (x, y, z) and size along x, y and z of a box of voxels."""
    middle = np.array([(part.start + part.stop - 1) / 2 for part in box])
    sizes = [(part.stop - part.start) * mm for part, mm in zip(box, volume.spacing_mm, strict=True)]
    return [*voxel_to_lps(volume.affine, middle).tolist(), *reversed(sizes)]


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]
