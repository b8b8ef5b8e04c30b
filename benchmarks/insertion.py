"""Nodules into a scan of 512 x 512 x 300: seconds, memory and plans a minute, beside reading and writing the scan.

    python benchmarks/insertion.py [--json]

The scan is drawn: a body with two lungs and noise, at 1 x 0.7 x 0.7 mm. Five nodules are inserted, balls of five sizes
from a pool, so that no network is measured. Seconds are of CPU time of one process; memory is the peak beyond what
holds the scan itself. `over_file` is the work between reading and writing over the time that gzip and nibabel take to
write and read the same scan.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from lungsynth.cohort.lung_mask import threshold_lung_mask
from lungsynth.cohort.patches import NoduleCube, cube_diameter_mm
from lungsynth.config import PlacementConfig
from lungsynth.ct.nifti import read_nifti
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import write_nifti
from lungsynth.geometry import axial_affine
from lungsynth.hounsfield import Label
from lungsynth.scans.cubes import CubePool, SourcedCube
from lungsynth.scans.insert import insert_nodules
from lungsynth.scans.plan import plan_scan
from lungsynth.scans.request import parse_requests
from lungsynth.scans.shape import ScanShape

SHAPE, SPACING_MM = (300, 512, 512), (1.0, 0.7, 0.7)
PLANS = 50
NODULES = "solid 6-12mm x2, part_solid 8-14mm x2, ground_glass 10mm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure()
    lines = [f"{name:24} {value:10.2f}" for name, value in figures.items()]
    print(json.dumps(figures) if options.json else "\n".join(lines))


def measure() -> dict[str, float]:
    """The figures, by name."""
    volume = draw_scan()
    start_gb = reset_peak_gb()
    lung, lung_s = timed(lambda: threshold_lung_mask(volume.hu, spacing_mm=SPACING_MM))
    label = np.where(lung, np.uint8(Label.LUNG), np.uint8(Label.BACKGROUND))
    shape, shape_s = timed(lambda: prepared(volume, lung))
    requests, rules, nodules = parse_requests(NODULES), PlacementConfig(policy="varied").placement_rules, pool()
    with tempfile.TemporaryDirectory() as folder:
        plans, plan_s = timed(lambda: [plan_scan(shape, requests, nodules, rules, seed=k) for k in range(PLANS)])
        _, insert_s = timed(lambda: insert_nodules(volume, label, plans[0].placed, seed=0))
        peak_gb = memory_gb("VmHWM")
        path = Path(folder) / "scan.nii.gz"
        _, write_s = timed(lambda: write_nifti(path, volume))
        _, read_s = timed(lambda: read_nifti(path))
    work_s = shape_s + plan_s / PLANS + insert_s
    return {
        "find_lungs_s": lung_s,
        "measure_lungs_s": shape_s,
        "insert_s": insert_s,
        "plans_per_minute": 60 * PLANS / plan_s,
        "work_s": work_s,
        "write_and_read_s": write_s + read_s,
        "over_file": (lung_s + work_s) / (write_s + read_s),
        "memory_beyond_scan_gb": peak_gb - start_gb,
    }


def reset_peak_gb() -> float:
    """Begins to measure the peak anew, and returns what is used now; on Linux."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory_gb("VmRSS")


def memory_gb(name: str) -> float:
    """A figure of this process: VmRSS or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def prepared(volume: Volume, lung: np.ndarray) -> ScanShape:
    """A scan's shape with what it keeps."""
    shape = ScanShape.of(volume.hu, lung, spacing_mm=SPACING_MM)
    _ = shape.presence
    return shape


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the CPU seconds it takes."""
    start = time.process_time()
    return work(), time.process_time() - start


def draw_scan() -> Volume:
    """A body with two lungs."""
    rng = np.random.default_rng(0)
    z, y, x = (
        (np.arange(size, dtype=np.float32) - (size - 1) / 2).reshape([-1 if axis == k else 1 for k in range(3)]) * mm
        for axis, (size, mm) in enumerate(zip(SHAPE, SPACING_MM, strict=True))
    )
    body = (y / 120) ** 2 + (x / 165) ** 2 < 1
    lungs = np.minimum(*((z / 130) ** 2 + (y / 90) ** 2 + ((x - side) / 65) ** 2 for side in (-80, 80))) < 1
    level = np.where(lungs, np.float32(-850), np.where(body, np.float32(40), np.float32(-1000)))
    for plane in level:
        plane += ndimage.gaussian_filter(rng.normal(0, 70, plane.shape).astype(np.float32), 0.7)
    affine = axial_affine(spacing_mm=SPACING_MM, origin_lps_mm=(0.0, 0.0, 0.0))
    hu = np.rint(level).clip(-1024, 3071).astype(np.int16)
    return Volume(hu=hu, affine=affine, series_id="drawn", patient_id="drawn", patient_known=False)


def pool() -> CubePool:
    """Balls of some sizes."""
    steps = (np.arange(64) - 31.5) * 0.7
    radius = np.sqrt(steps[:, None, None] ** 2 + steps[:, None] ** 2 + steps**2)

    def ball(diameter_mm: float, hu: int) -> SourcedCube:
        alpha = np.clip((diameter_mm / 2 - radius) / 1.4 + 0.5, 0, 1).astype(np.float16)
        cube = NoduleCube(hu=np.where(alpha > 0, hu, -850).astype(np.int16), alpha=alpha)
        return SourcedCube(cube=cube, source="generated", origin="drawn", diameter_mm=cube_diameter_mm(cube))

    levels = {"solid": 0, "part_solid": -350, "ground_glass": -600}
    return CubePool(nodules={name: [ball(mm, hu) for mm in (6, 8, 10, 12, 14)] for name, hu in levels.items()})


if __name__ == "__main__":
    main()
