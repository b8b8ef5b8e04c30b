"""The product as two rows of Table III: generated nodules composited onto generated lungs, enhanced or not.

Both rows show the same composites, a random draw, category by category, of what `lungsynth generate` plans for
`CATALOGUE_SIZE` samples without real voxels: its assets, catalogue, renderer and last stage, with the label check. Only
what is compared is rendered. On grids other than the generator's, slices are brought onto it like real ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.cohort_subsets import Subset
from evaluation.generation.methods import TABLE_LUNG_PX, GeneratedSamples, SampleRequests
from evaluation.methods import (
    Method,
    Relation,
    count_parameters,
    digest_of,
    relation_to,
    train_minutes,
    usable_methods,
)
from lungsynth.bundles import WeightsInfo, lung_generator, nodule_rule, read_weights
from lungsynth.categories import ANY
from lungsynth.cohort.slices import LUNG_SIZES_PX, slice_on_grid
from lungsynth.compositing.render import Renderer
from lungsynth.config import GenerateConfig, PlacementConfig, SelectionConfig
from lungsynth.enhancement.stage import EnhancementStage, enhancement_identity, open_stage
from lungsynth.errors import InputError
from lungsynth.generate_assets import make_assets, open_samplers
from lungsynth.geometry import LUNG_FIELD_MM, LUNG_SPACING_MM
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, Recipe, read_catalogue
from lungsynth.placement.plan_catalogue import plan_catalogue
from lungsynth.seeds import SeedStream, seeds
from lungsynth.similarity.samples import Samples
from lungsynth.similarity.selection import selection_identity
from lungsynth.types import HuPlane, LabelPlane

__all__ = ["CATALOGUE_SIZE", "PIPELINE_ROWS", "find_pipeline"]

# Samples that are planned: on 317 lungs, so that slices seldom share one, as among the paper's million. More lungs
# take longer to make.
CATALOGUE_SIZE = 40_000
PIPELINE_ROWS: Mapping[str, str] = {
    "first_stage": "First stage alone: composed",
    "two_stage": "Two stages (this method): composed and enhanced",
}
_ENHANCED_ROW = "two_stage"
_BEST_TO_WORST: tuple[Relation, ...] = ("held_out", "other_collections", "may_have_trained")


@dataclass(frozen=True, kw_only=True)
class _PipelineRun:
    """Where a catalogue is made, from what, and by which weights."""

    folder: Path
    subset: Subset
    bundles: Path
    seed: int
    size: int
    nodule_weights: str
    lung_weights: str


def find_pipeline(
    subset: Subset,
    bundles: Path,
    folder: Path,
    *,
    seed: int,
    requested: Sequence[str] | None = None,
    size: int = CATALOGUE_SIZE,
) -> tuple[list[Method], dict[str, str]]:
    """Both rows; each opens a `SampleGenerator`.

    Args:
        subset: who is evaluated on; the training split of its cohort says where nodules occur.
        bundles: folder of the bundles.
        folder: takes assets and catalogue, for going on after a stop.
        seed: of everything random.
        requested: names; both when None.
        size: samples to plan.

    Returns:
        The rows, and why one is left out.

    Raises:
        InputError: when a requested one has no usable weights.
    """
    names = [name for name in PIPELINE_ROWS if requested is None or name in requested]
    return usable_methods(
        names,
        lambda name: _pipeline_method(name, subset, bundles, folder, seed=seed, size=size),
        requested=None if requested is None else names,
        folders=(bundles,),
    )


def _pipeline_method(name: str, subset: Subset, bundles: Path, folder: Path, *, seed: int, size: int) -> Method:
    if (rule := nodule_rule(bundles)).identity:
        raise InputError(
            f"wcapsgan_bundle makes nodules of {list(rule.names or (ANY,))}, by {rule.key!r}, and Table III compares "
            "slices composed by texture class. Evaluate it as `nodules`, or give `bundles` with a generator of texture "
            "classes."
        )
    nodules = read_weights(bundles, "wcapsgan")
    lungs = read_weights(bundles, "wcapsgan", file=lung_generator(TABLE_LUNG_PX).weights)
    enhanced = name == _ENHANCED_ROW
    last = {key: read_weights(bundles, key) for key in ("cyclegan", "lung_seg")} if enhanced else {}
    selection = selection_identity(SelectionConfig().resolve(subset.folder))
    facts = [subset.identity, nodules.sha256, lungs.sha256, seed, size, selection]
    run = _PipelineRun(
        folder=folder / f"pipeline-{digest_of(facts)[:16]}",
        subset=subset,
        bundles=bundles,
        seed=seed,
        size=size,
        nodule_weights=nodules.sha256,
        lung_weights=lungs.sha256,
    )
    generators = [nodules, lungs, *([last["cyclegan"]] if enhanced else [])]
    minutes = [value for info in generators if (value := train_minutes(info.sidecar)) is not None]
    return Method(
        name=name,
        title=PIPELINE_ROWS[name],
        open=partial(_open_pipeline, run, enhanced=enhanced),
        identity=digest_of([*facts, *(enhancement_identity(bundles, label_check=True).items() if enhanced else ())]),
        parameters=sum(count_parameters(info) for info in generators),
        train_minutes=sum(minutes) if len(minutes) == len(generators) else None,
        relation=_worst_relation(subset, [*generators, *last.values()]),
    )


def _worst_relation(subset: Subset, weights: Sequence[WeightsInfo]) -> Relation:
    """Of all networks."""
    return max((relation_to(subset, info.sidecar) for info in weights), key=_BEST_TO_WORST.index)


def _open_pipeline(run: _PipelineRun, *, enhanced: bool) -> "_CatalogueSampler":
    library, catalogue = _make_catalogue(run)
    stage = open_stage(run.bundles, label_check=True, folder=run.folder / "enhanced") if enhanced else None
    return _CatalogueSampler(library, catalogue, stage, seed=run.seed)


def _make_catalogue(run: _PipelineRun) -> tuple[AssetLibrary, Catalogue]:
    """The assets and the plan of a run without real voxels, as far as they are missing."""
    config = GenerateConfig(
        out=run.folder,
        count=run.size,
        seed=run.seed,
        bundles=run.bundles,
        cohort=run.subset.folder,
        placement=PlacementConfig(real_share=0.0),
        lung_px=TABLE_LUNG_PX,
    )
    if not (run.folder / "assets.parquet").exists():
        samplers = open_samplers(
            run.bundles,
            nodule_weights=run.nodule_weights,
            lung_weights=run.lung_weights,
            lungs=lung_generator(TABLE_LUNG_PX),
            rule=nodule_rule(run.bundles),
        )
        make_assets(AssetLibrary(run.folder), samplers, config)
    library = AssetLibrary(run.folder)
    if not config.catalogue_path.exists():
        plan_catalogue(library, config, run.subset.cohort.split("training").nonempty())
    return library, read_catalogue(config.catalogue_path)


class _CatalogueSampler:
    """Answers requests with samples of a catalogue, each once, in an order that the seed gives."""

    def __init__(
        self, library: AssetLibrary, catalogue: Catalogue, stage: EnhancementStage | None, *, seed: int
    ) -> None:
        self._renderer, self._catalogue, self._stage = Renderer(library), catalogue, stage
        categories = np.array(catalogue.table["category"].to_pylist(), dtype=object)
        words = seeds(seed, SeedStream.SAMPLES, 1, n=len(set(categories)))
        self._orders = {
            name: np.random.default_rng(word).permutation(np.flatnonzero(categories == name))
            for name, word in zip(sorted(set(categories)), words, strict=True)
        }
        self._n_used: Counter[str] = Counter()

    def __call__(self, requests: SampleRequests) -> GeneratedSamples:
        if unknown := sorted(set(requests.categories) - set(self._orders)):
            raise InputError(f"wcapsgan_bundle makes no nodules of {unknown}, only of {sorted(self._orders)}.")
        recipes = [self._next_recipe(category) for category in requests.categories]
        slices = [self._render(recipe) for recipe in tqdm(recipes, desc="slices", unit="slice", leave=False)]
        size = LUNG_SIZES_PX[0]
        samples = Samples(
            hu=np.stack([hu for hu, _ in slices]) if slices else np.zeros((0, size, size), np.int16),
            mask=np.stack([label for _, label in slices]).astype(bool).astype(np.float16),
            categories=requests.categories,
            owners=requests.names,
            names=requests.names,
            spacing_mm=LUNG_SPACING_MM,
        )
        return GeneratedSamples(samples=samples)

    def _next_recipe(self, category: str) -> Recipe:
        order, place = self._orders[category], self._n_used[category]
        if place >= len(order):
            raise InputError(
                f"{len(order)} samples of category {category} are planned, more are requested: lower `count`."
            )
        self._n_used[category] += 1
        return self._catalogue[int(order[place])]

    def _render(self, recipe: Recipe) -> tuple[HuPlane, LabelPlane]:
        sample, background = self._renderer.render(recipe), self._renderer.background(recipe)
        hu = sample.image if self._stage is None else self._stage(sample, recipe.lung, background)[0]
        size, label = LUNG_SIZES_PX[0], sample.label
        if hu.shape != (size, size) or not np.allclose(background.spacing_mm, LUNG_FIELD_MM / size):
            return slice_on_grid(hu, label, spacing_mm=background.spacing_mm, size_px=size)
        return hu, np.where(label == Label.UNLABELLED, np.uint8(Label.BACKGROUND), label)
