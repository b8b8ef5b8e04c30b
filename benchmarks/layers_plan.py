"""Planning: time and memory from lung masks to the written catalogue, and the former planner beside it.

Run by `layers.py`. The measured part runs in a process of its own, so that its peak memory is its own. Lungs are drawn:
two ellipses with rough edges, 512 x 512 at 0.7 mm, noisy HU with vessels; 500 distinct ones, taken again for more.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from lungsynth.geometry import axial_affine
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import PlanWeights, TableWriter, write_pairs
from lungsynth.placement.groups import draw_groups
from lungsynth.placement.lung_shape import LibraryLungs, LungShape
from lungsynth.placement.planning import CategoryPlan, plan_categories
from lungsynth.placement.presence import analytic_presence, lidc_presence

SIZE_PX = 512
SPACING_MM = (0.7, 0.7)
DISTINCT = 500
COMPARED_PAIRS = 2000


def measure(repeats: int) -> tuple[dict[str, float], list[str]]:
    """The planning keys of `--json`, and lines for the table."""
    runs = [_child(lungs=500, groups=5000, keep=1_000_000) for _ in range(repeats)]
    best = min(runs, key=lambda run: run["seconds"])
    large = _child(lungs=5000, groups=5000, keep=1_000_000)
    loop = _child(lungs=20, groups=COMPARED_PAIRS // 20, keep=1000, mode="loop")
    whole = loop["seconds"] * 2_500_000 / COMPARED_PAIRS
    keys = {
        "plan_seconds": best["seconds"],
        "plan_peak_gb": best["peak_gb"],
        "catalogue_mb": best["catalogue_mb"],
        "plan_cpu_seconds": best["cpu_seconds"],
        "plan_cpu_seconds_25m_pairs": large["cpu_seconds"],
        "plan_seconds_25m_pairs": large["seconds"],
        "plan_peak_gb_25m_pairs": large["peak_gb"],
        "plan_vs_loop": whole / best["seconds"],
    }
    spread = ", ".join(f"{run['seconds']:.1f}" for run in runs)
    rows = [
        (
            "plan 500 x 5,000, keep 1,000,000",
            f"{best['seconds']:.1f} s",
            f"of {spread}; CPU {best['cpu_seconds']:.1f} s",
        ),
        ("  measuring lungs", f"{best['lung_seconds']:.1f} s", "SHA-256, distance maps, vessels"),
        ("  writing the catalogue", f"{best['write_seconds']:.1f} s", f"{best['rows']:,} rows"),
        ("  peak memory", f"{best['peak_gb']:.2f} GB", f"{best['base_gb']:.2f} GB of it imports"),
        ("  catalogue", f"{best['catalogue_mb']:.1f} MB", ""),
        ("plan 5,000 x 5,000, keep 1,000,000", f"{large['seconds']:.1f} s", f"CPU {large['cpu_seconds']:.1f} s"),
        ("  peak memory", f"{large['peak_gb']:.2f} GB", f"{large['base_gb']:.2f} GB of it imports"),
        ("loop over pairs instead", f"{whole:.0f} s", f"extrapolated from {COMPARED_PAIRS:,} pairs"),
    ]
    lines = [f"{name:40}{value:>12}   {remark}" for name, value, remark in rows]
    return keys, lines


def _child(**settings: int | str) -> dict[str, float]:
    command = [sys.executable, __file__, json.dumps(settings)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def draw_lung(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """HU int16 and mask of two rough ellipses with vessels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:SIZE_PX, :SIZE_PX]
    rough = ndimage.zoom(rng.normal(0, 0.09, (17, 17)), SIZE_PX / 17, order=1)
    mask = np.zeros((SIZE_PX, SIZE_PX), dtype=bool)
    for side in (-1, 1):
        height, width = rng.uniform(95, 140), rng.uniform(70, 88)
        middle = 255 + side * (width + rng.uniform(14, 26))
        mask |= ((rows - 256) / height) ** 2 + ((columns - middle) / width) ** 2 + rough <= 1
    vessels = ndimage.zoom(rng.normal(0, 1, (64, 64)), SIZE_PX / 64, order=1) > 1.9
    hu = np.where(mask, np.where(vessels, 0, -860), 40) + rng.normal(0, 25, mask.shape)
    return np.rint(hu).astype(np.int16), mask


class Repeated:
    """Lungs of a library, each as often as it takes to make `count`, under names of their own."""

    def __init__(self, lungs: LibraryLungs, count: int) -> None:
        self.lungs, self.seconds = lungs, 0.0
        self.assets = [replace(lungs.assets[at % len(lungs)], hash=f"{at + 1:016x}") for at in range(count)]

    def __len__(self) -> int:
        return len(self.assets)

    def __getitem__(self, index: int) -> LungShape:
        started = time.perf_counter()
        shape = self.lungs[index % len(self.lungs)]
        self.seconds += time.perf_counter() - started
        return shape


def fill(folder: Path, count: int) -> LibraryLungs:
    """A library of drawn lungs, as a chain or a plan makes it."""
    library = AssetLibrary(folder)
    affine = axial_affine(spacing_mm=(1.0, *SPACING_MM), origin_lps_mm=(0.0, 0.0, 0.0))
    for seed in range(count):
        hu, mask = draw_lung(seed)
        library.add_lung(hu, mask, affine=affine, source="generated", origin=str(seed))
    return LibraryLungs.of(library)


def memory_gb(name: str) -> float:
    """`VmHWM` (peak) or `VmRSS` (now) of this process."""
    line = next(
        line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) * 1024 / 1e9


def nodules() -> list[Asset]:
    """1,200 nodules, 200 of them real."""
    rng = np.random.default_rng(0)
    return [
        Asset(
            hash=f"{int(rng.integers(1 << 62)):016x}",
            kind="nodule",
            source="real" if index < 200 else "generated",
            category="solid",
            origin=str(index),
            diameter_mm=4 + 20 * float(rng.random()) ** 3,
        )
        for index in range(1200)
    ]


def plan_once(lungs: int, groups: int, keep: int) -> dict[str, float]:
    """Plans and writes a catalogue; seconds from the lung masks on disk to the file."""
    with tempfile.TemporaryDirectory() as name:
        folder, pool = Path(name), nodules()
        shapes = Repeated(fill(folder, min(lungs, DISTINCT)), lungs)
        base, started, cpu = memory_gb("VmRSS"), time.perf_counter(), time.process_time()
        prior = lidc_presence(shapes.lungs.sample())
        drawn = draw_groups(pool, groups, seed=1, prior=prior)
        found = plan_categories(shapes, {"solid": CategoryPlan(groups=drawn, keep=keep)})["solid"]
        path, writing = folder / "catalogue.parquet", time.perf_counter()
        weights = PlanWeights(nodule="ab" * 32, enhancer=None)
        with TableWriter(path) as writer:
            write_pairs(writer, shapes.assets, [(found.pairs, drawn)], seed=7, weights=weights)
        ended = time.perf_counter()
        return {
            "seconds": ended - started,
            "cpu_seconds": time.process_time() - cpu,
            "lung_seconds": shapes.seconds,
            "write_seconds": ended - writing,
            "catalogue_mb": path.stat().st_size / 1e6,
            "rows": len(found),
            "peak_gb": memory_gb("VmHWM"),
            "base_gb": base,
        }


def loop_once(lungs: int, groups: int, keep: int) -> dict[str, float]:
    """What one would write at first: a distance map a lung, a loop over pairs and nodules, a sort."""
    planes = [draw_lung(seed) for seed in range(lungs)]
    drawn = draw_groups(nodules(), groups, seed=1, prior=analytic_presence())
    started, kept = time.perf_counter(), []
    for index, (_, mask) in enumerate(planes):
        distance = ndimage.distance_transform_edt(mask, sampling=SPACING_MM)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        for number, group in enumerate(drawn):
            found = []
            for member in group.members:
                row = rows[0] + member.v * (rows[-1] - rows[0])
                column = columns[0] + member.u * (columns[-1] - columns[0])
                at = float(ndimage.map_coordinates(distance, [[row], [column]], order=1)[0])
                found.append(at if at >= 0.65 * member.diameter_mm else -1.0)
            if min(found) > 0:
                kept.append((-min(found), index, number))
    kept = sorted(kept)[:keep]
    return {"seconds": time.perf_counter() - started, "rows": len(kept)}


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    mode = {"plan": plan_once, "loop": loop_once}[options.pop("mode", "plan")]
    print(json.dumps(mode(**options)))
