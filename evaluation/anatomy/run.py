"""`lungsynth-eval anatomy`: the product's generator of lungs, and any images, judged by anatomy and by patches of lung.

Files of the folder: `anatomy.md`, `anatomy.json`, and `mixed.png` with `mixed_key.md`: real and generated slices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from einops import repeat
from PIL import Image
from scipy import ndimage

from evaluation.anatomy.compare import AnatomyJudgement
from evaluation.anatomy.lungs import read_images, read_native_lungs
from evaluation.anatomy.outline import PIXEL_MM
from evaluation.anatomy.reference import JUDGED_SLICES, AnatomyReference, read_anatomy_reference
from evaluation.anatomy.table import anatomy_json, anatomy_markdown
from evaluation.cohort_subsets import EvaluationSplit, Subset, open_subset
from evaluation.mixed import write_mixed
from evaluation.runner import EvaluationResult, Report, Runner
from lungsynth.bundles import lung_generator, open_bundle
from lungsynth.cohort.montage import Tile
from lungsynth.errors import InputError
from lungsynth.geometry import LUNG_FIELD_MM
from lungsynth.hounsfield import DISPLAY_WINDOW, to_int16
from lungsynth.similarity.samples import Samples
from lungsynth.tracking import DEFAULT_URI
from lungsynth.types import HuPlane

__all__ = ["AnatomyConfig", "evaluate_anatomy"]

Judges = Literal["held_out", "test", "validation"]

_FIRST_SEED = 2_000_000  # of generated lungs; those of Table II begin elsewhere
_SHOWN_PX, _COARSE_PX = 512, 256  # sides of the generator's lungs; the default first
_MIXED, _TILE_PX = 16, 256  # slices of each side in the picture, and the sides of their tiles
_BLUR_MM = 0.7
_NOISE_HU = 20.0  # of white noise, about as much as there is


@dataclass(frozen=True, kw_only=True)
class AnatomyConfig:
    """A judgement of lungs.

    Args:
        cohort: folder written by `lungsynth prepare`; its training patients may have trained the generator.
        out: folder of the tables; made when absent.
        bundles: folder of the bundles.
        split: who judges: `held_out` is validation and test patients together; `validation` to choose weights, so that
            `test` remains unseen.
        images: further lungs to judge (`lungs.read_images`).
        generator: whether the product's generator of lungs is judged.
        controls: whether real training slices, blurred and with noise added, are judged too: a judge must notice.
        count: lungs of each, at most 64.
        seed: of everything random.

    Raises:
        InputError: when a number is out of range, or nothing is to be judged.
    """

    cohort: Path
    out: Path
    bundles: Path
    split: Judges = "held_out"
    images: tuple[Path, ...] = ()
    generator: bool = True
    controls: bool = False
    count: int = JUDGED_SLICES
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.count <= JUDGED_SLICES or self.seed < 0:
            raise InputError(
                f"`count` must be 2 to {JUDGED_SLICES} and `seed` not negative, got {self.count} and {self.seed}."
            )
        if not (self.images or self.generator or self.controls):
            raise InputError("Nothing is to be judged: give `images`, or leave the generator or the controls in.")

    @property
    def splits(self) -> tuple[EvaluationSplit, ...]:
        """Whose patients judge."""
        return ("validation", "test") if self.split == "held_out" else (self.split,)


def evaluate_anatomy(config: AnatomyConfig, *, tracking_uri: str = DEFAULT_URI) -> EvaluationResult:
    """Judges, and writes the tables.

    Raises:
        InputError: when the cohort, the generator, an image or the tracking store cannot be used.
    """
    subset = open_subset(config.cohort, config.splits[-1])
    runner = Runner(command="anatomy", subset=subset, out=config.out, seed=config.seed, tracking_uri=tracking_uri)
    return runner.report(lambda: _evaluate(config, subset))


def _evaluate(config: AnatomyConfig, subset: Subset) -> Report:
    reference = read_anatomy_reference(config.cohort, config.splits, seed=config.seed)
    rows = [(title, reference.judge(samples)) for title, samples in _sides(config)]
    table = {
        **subset.facts(),
        "split": config.split,
        **anatomy_json(reference),
        "rows": [{"title": title, **judgement.to_json()} for title, judgement in rows],
    }
    return Report(
        name="anatomy",
        table=table,
        markdown=_markdown(config, rows, reference),
        metrics={
            f"{title}/{name}": getattr(judgement, name)
            for title, judgement in rows
            for name in ("mean_distance", "worst", "forest", "patches")
        },
        params={"count": config.count, "judges": config.split},
    )


def _sides(config: AnatomyConfig) -> Iterator[tuple[str, Samples]]:
    """What is judged, with its title."""
    if config.generator:
        shown = _generated(config, _SHOWN_PX)
        _write_mixed(config, shown)
        yield f"**W-CapsuleGAN**, {_SHOWN_PX} x {_SHOWN_PX} pixels", shown
        yield f"W-CapsuleGAN, {_COARSE_PX} x {_COARSE_PX} pixels", _generated(config, _COARSE_PX)
    for path in config.images:
        yield path.name, read_images(path, count=config.count)
    if config.controls:
        real = read_native_lungs(config.cohort, ("training",))
        yield "training patients, blurred", _changed(real, blur_px=_BLUR_MM / PIXEL_MM)
        yield "training patients, noise added", _changed(real, noise_hu=_NOISE_HU, seed=config.seed)


def _generated(config: AnatomyConfig, lung_px: int) -> Samples:
    """Lungs of the product's generator with sides of so many pixels."""
    sampler = open_bundle(config.bundles, "wcapsgan", **lung_generator(lung_px)._asdict())
    first = _FIRST_SEED * (config.seed + 1)
    seeds = range(first, first + config.count)
    made = sampler(list(seeds), ["normal"] * config.count, [None] * config.count)
    names = tuple(f"seed {seed}" for seed in seeds)
    return Samples(
        hu=made["hu"],
        mask=made["mask"].astype(np.float16),
        categories=("normal",) * config.count,
        owners=names,
        names=names,
        spacing_mm=LUNG_FIELD_MM / lung_px,
    )


def _write_mixed(config: AnatomyConfig, generated: Samples) -> None:
    """`mixed.png`: real slices, each of another patient as far as there are any, and as many generated ones."""
    rng, real = np.random.default_rng(config.seed), read_native_lungs(config.cohort, config.splits)
    rank = {owner: iter(range(len(real))) for owner in real.owners}
    turns = [next(rank[owner]) for owner in real.owners]
    order = np.lexsort((rng.permutation(len(real)), np.array(turns)))[:_MIXED]
    tiles = [(_tile(real.hu[i]), "real") for i in order]
    tiles += [(_tile(generated.hu[i]), "generated") for i in rng.permutation(len(generated))[: len(order)]]
    write_mixed(tiles, config.out, what="held-out slices and generated lungs", rng=rng)


def _tile(hu: HuPlane) -> Tile:
    picture = Image.fromarray(DISPLAY_WINDOW.to_grey(hu)).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
    return repeat(np.asarray(picture), "h w -> h w c", c=3)


def _changed(samples: Samples, *, blur_px: float = 0.0, noise_hu: float = 0.0, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    planes = [
        ndimage.gaussian_filter(plane.astype(np.float32), blur_px) + rng.normal(0, 1, plane.shape) * noise_hu
        for plane in samples.hu
    ]
    return replace(samples, hu=to_int16(np.stack(planes)))


def _markdown(config: AnatomyConfig, rows: Sequence[tuple[str, AnatomyJudgement]], reference: AnatomyReference) -> str:
    training = reference.training_judgement
    shown = [*rows, ("*training patients*", training)]
    judges = "validation and test" if config.split == "held_out" else config.split
    return "\n".join(
        (
            "# Anatomy of lungs at 0.7 mm\n",
            f"{reference.judging.n_owners} {judges} patients judge; definitions: docs/evaluation_anatomy.md.\n",
            anatomy_markdown(shown, reference),
        )
    )
