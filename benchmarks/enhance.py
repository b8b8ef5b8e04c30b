"""Enhanced composites a second from a catalogue, beside the generator of the CycleGAN paper; and the training step.

python benchmarks/enhance.py [--json FILE] [--repeats N] [--samples N]

Composites are those of `layers_render.make_catalogue` (120 drawn lungs, most 512 x 512; 1 to 3 nodules), rendered and
enhanced, not written. Lungs are enhanced before the clock starts, as they are but once in a catalogue. The reference is
the 9-block ResNet of Zhu et al. (2017): 64 channels, instance norm, float32, a whole 512 x 512 slice.

What is compared is measured in CPU seconds of one thread, which are wall time on a machine with nothing else to do; on
two cores both sides double at best (two processes here, two threads there, which share worse). It runs in turns, and
the best turn of each counts. `full_frame_seconds` is wall time on two threads, the best of many.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import layers_render
import numpy as np
import torch
from enhance_resnet import ResnetGenerator
from enhance_training import training_speedup

from lungsynth.bundles import open_bundle
from lungsynth.compositing.render import Renderer
from lungsynth.enhancement.stage import EnhancementStage, open_stage
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Recipe, read_catalogue

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
SIZE = 512
MILLION, CORES = 1_000_000, 2


def main(argv: list[str] | None = None) -> None:
    """Measures, prints one table, and writes the keys when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--repeats", type=int, default=5, help="turns, of which the best counts (default: 5)")
    parser.add_argument("--samples", type=int, default=60, help="composites a turn (default: 60)")
    parser.add_argument("--bundles", type=Path, default=BUNDLES)
    args = parser.parse_args(argv)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    figures = measure_inference(args.bundles, repeats=args.repeats, samples=args.samples)
    figures |= training_speedup(args.bundles, repeats=args.repeats)
    for name, value in figures.items():
        print(f"{name:32}{value:12.4g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure_inference(bundles: Path, *, repeats: int, samples: int) -> dict[str, float]:
    """All keys but that of training."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        catalogue = layers_render.make_catalogue(Path(name), keep=20 * samples)
        recipes = list(read_catalogue(catalogue))[::20][:samples]
        renderer = Renderer(AssetLibrary(catalogue.parent))
        plain, gated = (open_stage(bundles, label_check=gate) for gate in (False, True))
        for recipe in recipes:  # the lungs, and the resampled nodules
            enhance(recipe, renderer, plain)
            gated.lung(recipe.lung, renderer.background(recipe))
        turns = {
            "resnet9": resnet_turn(),
            "composite": lambda: seconds_each(lambda recipe: enhance(recipe, renderer, plain), recipes),
            "gated": lambda: seconds_each(lambda recipe: enhance(recipe, renderer, gated), recipes[: samples // 4]),
        }
        times = [{key: turn() for key, turn in turns.items()} for _ in range(repeats)]  # in turns: a machine drifts
        best = {key: min(one[key] for one in times) for key in turns}
    return {
        "speedup_vs_resnet9": best["resnet9"] / best["composite"],
        "speedup_with_gate": best["resnet9"] / best["gated"],
        **full_frame_seconds(bundles, repeats=10 * repeats),
        "million_hours": best["composite"] * MILLION / CORES / 3600,
        "million_hours_with_gate": best["gated"] * MILLION / CORES / 3600,
        "million_hours_gated": best["gated"] * MILLION / CORES / 3600,
        "resnet9_cpu_seconds": best["resnet9"],
        "composite_cpu_seconds": best["composite"],
        "gated_cpu_seconds": best["gated"],
    }


def enhance(recipe: Recipe, renderer: Renderer, stage: EnhancementStage) -> np.ndarray:
    """One enhanced composite, int16 (H, W)."""
    image, _ = stage(renderer.render(recipe), recipe.lung, renderer.background(recipe))
    return image


def seconds_each(make: Callable[[Recipe], object], recipes: list[Recipe]) -> float:
    """CPU seconds a sample."""
    started = time.process_time()
    for recipe in recipes:
        make(recipe)
    return (time.process_time() - started) / len(recipes)


def resnet_turn() -> Callable[[], float]:
    """CPU seconds of the reference for one slice."""
    network, image = ResnetGenerator().eval(), torch.rand(1, 1, SIZE, SIZE) * 2 - 1

    def turn() -> float:
        started = time.process_time()
        with torch.inference_mode():
            network(image)
        return time.process_time() - started

    turn()
    return turn


def full_frame_seconds(bundles: Path, *, repeats: int) -> dict[str, float]:
    """The enhancer on one whole slice: wall seconds on two threads, and CPU seconds on one."""
    enhancer = open_bundle(bundles, "cyclegan", component="enhancer")
    hu = np.random.default_rng(0).integers(-1000, 200, (SIZE, SIZE), dtype=np.int16)
    mask, wall, cpu = np.zeros(hu.shape, np.bool_), [], []
    for threads, clock, found in ((CORES, time.perf_counter, wall), (1, time.process_time, cpu)):
        torch.set_num_threads(threads)
        for _ in range(repeats):
            started = clock()
            enhancer(hu, mask)
            found.append(clock() - started)
    return {"full_frame_seconds": min(wall), "full_frame_cpu_seconds": min(cpu)}


if __name__ == "__main__":
    main()
