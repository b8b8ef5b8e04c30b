"""Rendering: samples a second from a catalogue, beside copying, MONAI transforms, two processes and Ray.

Run by `layers.py`. 120 drawn lungs (`layers_plan.draw_lung`; one in ten of another spacing, as real lungs are), 1,200
nodules, 1,000 groups, 20,000 samples kept of 120,000 pairs. Samples are taken in random order, noise matched. What is
compared runs one right after the other, in each repeat; the best repeat counts. Rates of one process are per second of
its CPU time, which is wall time on a machine with nothing else to do; all other rates are per second of wall time.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import layers_monai
import numpy as np
import torch
from layers_plan import SPACING_MM, draw_lung

from lungsynth.compositing.render import Renderer
from lungsynth.data.dataset import LayeredLungDataset, LayeredLungLoader, collate_samples
from lungsynth.export.writer import ExportJob, export_catalogue
from lungsynth.geometry import axial_affine
from lungsynth.placement.assets import Asset, AssetLibrary
from lungsynth.placement.catalogue import PlanWeights, TableWriter, read_catalogue, write_pairs
from lungsynth.placement.groups import draw_groups
from lungsynth.placement.lung_shape import LibraryLungs
from lungsynth.placement.planning import CategoryPlan, plan_categories
from lungsynth.placement.presence import analytic_presence

LUNGS, NODULES, GROUPS, KEEP = 120, 1200, 1000, 20_000
MEASURED = 2000
BATCH = 16
RAY_SAMPLES = 1280


def measure(repeats: int) -> tuple[dict[str, float], list[str]]:
    """The rendering keys of `--json`, and lines for the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        catalogue = make_catalogue(Path(name))
        one = [_one_process(catalogue) for _ in range(repeats)]
        two = [_two_processes(catalogue) for _ in range(repeats)]
        ray = _ray_against_one(catalogue)
    best = max(one, key=lambda run: run["warm"])
    loader = max(two, key=lambda run: run["loader"] / run["alone"])
    keys = {
        "render_per_second": best["warm"],
        "render_vs_copy": best["warm"] / best["copy"],
        "render_vs_monai": best["warm"] / best["monai"],
        "dataloader_efficiency": loader["loader"] / loader["alone"],
        "ray_vs_one_process": ray["ray"] / ray["one"],
    }
    spread = ", ".join(f"{run['warm']:.0f}" for run in one)
    efficiencies = ", ".join(f"{run['loader'] / run['alone']:.2f}" for run in two)
    rows = [
        ("render 512 x 512, one process", best["warm"], f"of {spread}; {best['cold']:.0f}/s while nothing is kept yet"),
        ("  copying image and mask instead", best["copy"], f"image alone {best['copy_image']:.0f}/s"),
        ("  MONAI dictionary transforms", best["monai"], "patch turned, resampled, noise, paste, boxes"),
        ("two processes, each alone", loader["alone"], "samples thrown away"),
        ("  LayeredLungLoader, 2 workers", loader["loader"], f"int16, batches of {BATCH}, views; share {efficiencies}"),
        ("  the same, batches of their own", loader["copied"], "int16, copied in the main process"),
        ("  the same, float32", loader["float"], "converted in the main process"),
        ("  plain DataLoader, 2 workers", loader["plain"], "int16, collate_samples"),
        ("export, one process", ray["one"], "NIfTI; from the first part written to the last"),
        ("  Ray Data, 2 actors", ray["ray"], "likewise, so start-up is left out"),
    ]
    return keys, [f"{name:40}{value:>10.0f}/s   {remark}" for name, value, remark in rows]


def make_catalogue(folder: Path, *, keep: int = KEEP) -> Path:
    """A library with its catalogue, by the planner."""
    library = AssetLibrary(folder)
    for seed in range(LUNGS):
        hu, mask = draw_lung(seed)
        spacing = SPACING_MM if seed % 10 else (0.6 + 0.002 * seed,) * 2
        affine = axial_affine(spacing_mm=(1.0, *spacing), origin_lps_mm=(-180.0, -180.0, 0.0))
        library.add_lung(hu, mask, affine=affine, source="generated", origin=str(seed))
    nodules = list(_nodules(library))
    library.save_table()
    groups = draw_groups(nodules, GROUPS, seed=1, prior=analytic_presence())
    lungs = LibraryLungs.of(library)
    found = plan_categories(lungs, {"solid": CategoryPlan(groups=groups, keep=keep)})["solid"]
    with TableWriter(folder / "catalogue.parquet") as writer:
        weights = PlanWeights(nodule="ab" * 32, enhancer=None)
        write_pairs(writer, lungs.assets, [(found.pairs, groups)], seed=7, weights=weights)
    return folder / "catalogue.parquet"


def _nodules(library: AssetLibrary) -> Iterable[Asset]:
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:64, :64]
    for index in range(NODULES):
        diameter_mm = float(np.clip(rng.lognormal(np.log(8), 0.45), 3, 28))
        alpha = np.clip(diameter_mm / 1.4 - np.hypot(rows - 31.5, columns - 31.5) + 0.5, 0, 1)
        hu = np.rint(rng.normal(0, 15, (64, 64))).astype(np.int16)
        yield library.add_nodule(hu, alpha, category="solid", source="generated", origin=str(index))


def _rate(
    make: Callable[[int], object], indices: Iterable[int], clock: Callable[[], float] = time.process_time
) -> float:
    started, count = clock(), 0
    for index in indices:
        make(index)
        count += 1
    return count / (clock() - started)


def _order(catalogue: Path) -> np.ndarray:
    return np.random.default_rng(3).permutation(len(read_catalogue(catalogue)))


def _one_process(catalogue: Path) -> dict[str, float]:
    recipes, renderer, order = read_catalogue(catalogue), Renderer(AssetLibrary(catalogue.parent)), _order(catalogue)
    cold = _rate(lambda index: renderer.render(recipes[index]), order[:MEASURED])
    warm = _rate(lambda index: renderer.render(recipes[index]), order[MEASURED : 3 * MEASURED])
    lungs = {recipe.lung: renderer.lung(recipe) for recipe in recipes[:: len(recipes) // 400]}
    pairs = [(lung.image, lung.label) for lung in lungs.values()]
    copy_image = _rate(lambda index: pairs[index % len(pairs)][0].copy(), range(2 * MEASURED))
    copy = _rate(lambda index: [plane.copy() for plane in pairs[index % len(pairs)]], range(2 * MEASURED))
    overlay = layers_monai.MonaiOverlay(AssetLibrary(catalogue.parent))
    for index in order[:20]:
        overlay(recipes[index])
    monai = _rate(lambda index: overlay(recipes[index]), order[:200])
    return {"cold": cold, "warm": warm, "copy": copy, "copy_image": copy_image, "monai": monai}


def _two_processes(catalogue: Path) -> dict[str, float]:
    return {
        "alone": _alone(catalogue),
        "loader": _loader_rate(catalogue, torch.int16, copy=False),
        "copied": _loader_rate(catalogue, torch.int16),
        "float": _loader_rate(catalogue, torch.float32),
        "plain": _loader_rate(catalogue, torch.int16, plain=True),
    }


def _alone(catalogue: Path) -> float:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.SimpleQueue()
    workers = [context.Process(target=_render_alone, args=(catalogue, k, barrier, results)) for k in range(2)]
    for worker in workers:
        worker.start()
    rates = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rates)


def _render_alone(catalogue: Path, which: int, barrier: object, results: object) -> None:
    recipes, renderer = read_catalogue(catalogue), Renderer(AssetLibrary(catalogue.parent))
    order = _order(catalogue)[which::2]
    for index in order[:MEASURED]:
        renderer.render(recipes[index])
    barrier.wait()
    results.put(_rate(lambda index: renderer.render(recipes[index]), order[MEASURED : 2 * MEASURED], time.perf_counter))


def _loader_rate(catalogue: Path, dtype: torch.dtype, *, copy: bool = True, plain: bool = False) -> float:
    dataset = LayeredLungDataset(catalogue, dtype=dtype)
    order = _order(catalogue)[: 4 * MEASURED].tolist()
    if plain:
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=BATCH, num_workers=2, sampler=order, collate_fn=collate_samples
        )
    else:
        loader = LayeredLungLoader(dataset, batch_size=BATCH, num_workers=2, sampler=order, copy=copy)
    count = 0
    for batch in loader:
        count += len(batch["image"])
        # Both workers have filled their caches by then, as the processes alone have.
        if count == 2 * MEASURED:
            started = time.perf_counter()
    return (count - 2 * MEASURED) / (time.perf_counter() - started)


def _ray_against_one(catalogue: Path) -> dict[str, float]:
    # Ray gives its workers the lowest priority but one, which on a shared machine would compare priorities.
    os.environ.setdefault("RAY_worker_niceness", "0")
    return {
        "one": _export_rate(catalogue, catalogue.parent / "one", engine="local", workers=1),
        "ray": _export_rate(catalogue, catalogue.parent / "ray", engine="ray", workers=2),
    }


def _export_rate(catalogue: Path, out: Path, *, engine: str, workers: int) -> float:
    job = ExportJob(catalogue=catalogue, out=out, format="nifti")
    export_catalogue(job, end=RAY_SAMPLES, engine=engine, workers=workers)
    ends = sorted(path.stat().st_mtime for path in (out / ".parts").iterdir())
    return (len(ends) - workers) * job.how.part_size / (ends[-1] - ends[workers - 1])
