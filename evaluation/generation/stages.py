"""The two stages of the product as lines of Table III: composites of generated layers, before and after the CycleGAN.

Both lines show the same composites, a random draw, a category at a time, of what `scripts/synthesize.py` plans for
`PLANNED` samples without real voxels: its assets, catalogue, renderer and last stage, with the gate. Only what is
compared is rendered. On grids other than the generator's, slices are brought onto it like real ones.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from evaluation.cohort_subsets import Subset
from evaluation.generation.methods import GeneratedSamples, GenerationMethod, Requests
from evaluation.methods import Relation, count_parameters, relation_to
from lungsynth.bundles import nodule_rule, read_weights
from lungsynth.categories import ANY
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.slices import LUNG_SIZES_PX, slice_on_grid
from lungsynth.compositing.render import Renderer
from lungsynth.config import GenerateConfig, PlacementConfig, SelectionConfig
from lungsynth.enhancement.identity import enhancement_identity
from lungsynth.enhancement.stage import EnhancementStage, open_stage
from lungsynth.errors import InputError
from lungsynth.generate_assets import LUNG_WEIGHTS, make_assets, open_samplers
from lungsynth.grids import LUNG_FIELD_MM, LUNG_SPACING_MM
from lungsynth.hounsfield import Label
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, Recipe, read_catalogue
from lungsynth.placement.plan_catalogue import plan_catalogue
from lungsynth.seeds import SeedStream, seeds
from lungsynth.similarity.samples import Samples
from lungsynth.similarity.selection import selection_identity
from lungsynth.types import HuPlane, LabelPlane
from lungsynth.weights import WeightsInfo

__all__ = ["PLANNED", "STAGES", "find_stages"]

PLANNED = 40_000  # samples of the catalogue: 317 lungs, so that slices seldom share one, as among the paper's million
STAGES: Mapping[str, str] = {
    "first_stage": "First stage alone: composed",
    "two_stage": "Two stages (this method): composed and enhanced",
}
_WORST: tuple[Relation, ...] = ("held_out", "other_collections", "may_have_trained")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Where a catalogue is made, from what, and by which weights."""

    folder: Path
    cohort: Path
    bundles: Path
    seed: int
    nodule_weights: str
    lung_weights: str


def find_stages(
    part: Subset,
    bundles: Path,
    folder: Path,
    *,
    seed: int,
    wanted: Sequence[str] | None = None,
) -> tuple[list[GenerationMethod], dict[str, str]]:
    """Both lines.

    Args:
        part: on whose patients they are judged; its cohort's training part says where nodules lie.
        bundles: folder of the bundles.
        folder: takes assets and catalogue, for going on after a stop.
        seed: of everything random.
        wanted: names; both when None.

    Returns:
        The lines, and why one is left out.

    Raises:
        InputError: when a wanted one has no usable weights.
    """
    found, missing = [], {}
    for name in (name for name in STAGES if wanted is None or name in wanted):
        try:
            found.append(_stage(name, part, bundles, folder, seed=seed))
        except InputError as error:
            if wanted is not None:
                raise
            missing[name] = str(error).replace(f"{bundles}/", "")
    return found, missing


def _stage(name: str, part: Subset, bundles: Path, folder: Path, *, seed: int) -> GenerationMethod:
    if (rule := nodule_rule(bundles)).identity:
        raise InputError(
            f"wcapsgan_bundle makes nodules of {list(rule.names or (ANY,))}, by {rule.key!r}, and Table III compares "
            "slices composed by texture class. Judge it with `evaluate.py nodules`, or give --bundles with a generator "
            "of texture classes."
        )
    nodules, lungs = read_weights(bundles, "wcapsgan"), read_weights(bundles, "wcapsgan", file=LUNG_WEIGHTS)
    last = {key: read_weights(bundles, key) for key in ("cyclegan", "lung_seg")} if name == "two_stage" else {}
    selection = SelectionConfig().resolve(part.folder)
    known = [part.identity, nodules.sha256, lungs.sha256, seed, PLANNED, selection_identity(selection)]
    plan = _Plan(
        folder=folder / f"chain-{_digest(known)[:16]}",
        cohort=part.folder,
        bundles=bundles,
        seed=seed,
        nodule_weights=nodules.sha256,
        lung_weights=lungs.sha256,
    )
    made_by = [nodules, lungs, *([last["cyclegan"]] if last else [])]
    minutes = [m for read in made_by if isinstance(m := read.sidecar.get("train_minutes"), int | float)]
    return GenerationMethod(
        name=name,
        title=STAGES[name],
        open=partial(_open, plan, enhanced=bool(last)),
        identity=_digest([*known, *(enhancement_identity(bundles, label_check=True).items() if last else ())]),
        parameters=sum(count_parameters(read.path) for read in made_by),
        train_minutes=float(sum(minutes)) if len(minutes) == len(made_by) else None,
        relation=_relation(part, [*made_by, *last.values()]),
    )


def _relation(part: Subset, weights: Sequence[WeightsInfo]) -> Relation:
    """The worst of all networks'."""
    return max((relation_to(part, read.sidecar) for read in weights), key=_WORST.index)


def _digest(known: object) -> str:
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _open(plan: _Plan, *, enhanced: bool) -> "_Taking":
    library, catalogue = _planned(plan)
    stage = open_stage(plan.bundles, label_check=True, folder=plan.folder / "enhanced") if enhanced else None
    return _Taking(library, catalogue, stage, seed=plan.seed)


def _planned(plan: _Plan) -> tuple[AssetLibrary, Catalogue]:
    """What `generate.plan` does, without real voxels."""
    config = GenerateConfig(
        out=plan.folder,
        count=PLANNED,
        seed=plan.seed,
        bundles=plan.bundles,
        cohort=plan.cohort,
        placement=PlacementConfig(real_share=0.0),
    )
    if not (plan.folder / "assets.parquet").exists():
        samplers = open_samplers(
            plan.bundles,
            nodule_weights=plan.nodule_weights,
            lung_weights=plan.lung_weights,
            rule=nodule_rule(plan.bundles),
        )
        make_assets(AssetLibrary(plan.folder), samplers, config)
    library = AssetLibrary(plan.folder)
    if not config.catalogue_path.exists():
        plan_catalogue(library, config, Cohort.open(plan.cohort).split("training").nonempty())
    return library, read_catalogue(config.catalogue_path)


class _Taking:
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
        self._taken: Counter[str] = Counter()

    def __call__(self, requests: Requests) -> GeneratedSamples:
        if unknown := sorted(set(requests.categories) - set(self._orders)):
            raise InputError(f"wcapsgan_bundle makes no nodules of {unknown}, only of {sorted(self._orders)}.")
        recipes = [self._next(category) for category in requests.categories]
        made = [self._make(recipe) for recipe in tqdm(recipes, desc="slices", unit="slice", leave=False)]
        names = tuple(f"seed {seed}" for seed in requests.seeds)
        size = LUNG_SIZES_PX[0]
        samples = Samples(
            hu=np.stack([hu for hu, _ in made]) if made else np.zeros((0, size, size), np.int16),
            mask=np.stack([label for _, label in made]).astype(bool).astype(np.float16),
            categories=requests.categories,
            owners=names,
            names=names,
            spacing_mm=LUNG_SPACING_MM,
        )
        return GeneratedSamples(samples=samples)

    def _next(self, category: str) -> Recipe:
        order, place = self._orders[category], self._taken[category]
        if place >= len(order):
            raise InputError(
                f"{len(order)} samples of category {category} are planned, more are asked for: lower --count."
            )
        self._taken[category] += 1
        return self._catalogue[int(order[place])]

    def _make(self, recipe: Recipe) -> tuple[HuPlane, LabelPlane]:
        sample, background = self._renderer.render(recipe), self._renderer.background(recipe)
        hu = sample.image if self._stage is None else self._stage(sample, recipe.lung, background)[0]
        size, label = LUNG_SIZES_PX[0], sample.label
        if hu.shape != (size, size) or not np.allclose(background.spacing_mm, LUNG_FIELD_MM / size):
            return slice_on_grid(hu, label, spacing_mm=background.spacing_mm, size_px=size)
        return hu, np.where(label == Label.UNLABELLED, np.uint8(Label.BACKGROUND), label)
