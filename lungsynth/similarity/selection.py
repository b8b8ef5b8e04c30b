"""Which of many generated samples are kept: more are made than needed, ranked by similarity, the best usable ones kept.

`nearest` is the paper's ("the 1000 with the highest similarity"): those whose fifth nearest real sample is nearest, in
a feature network's space. It keeps what is most ordinary and loses the rest (figures: docs/results/selection.md).
`coverage` is greedy matching: one real sample after the other, in a seeded order, takes the free candidate most similar
to it, round after round, so that rare real samples have as many candidates kept as common ones have. `none` keeps the
order of generation.

A candidate is unlike real ones when it lies in no real sample's sphere, which reaches to that sample's fifth nearest of
other patients (the manifold of Naeem et al., 2020). Under `coverage` and `nearest` such candidates come last. Copies
are never kept. Where diameters are asked for, as many are kept of each part of their range, and the strategy chooses
within each part.

Candidate i of a category has a seed of its own. A round draws `candidates` for each sample that is still missing, so
the second one, which replaces copies and what cannot be used (an empty mask), is small. Nothing is stored but what is
kept. `selection.json` says what became of the others.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from lungsynth.config import Selection, SelectionStrategy
from lungsynth.errors import InputError
from lungsynth.hounsfield import to_int16
from lungsynth.io.atomic import write_json
from lungsynth.io.stored import integers, mappings, objects, read_json
from lungsynth.placement.assets import Asset, TooSmallError
from lungsynth.similarity.samples import SampleKind, Samples

if TYPE_CHECKING:
    from lungsynth.similarity.reference import ReferenceSet

__all__ = [
    "NEIGHBOURS",
    "TRIES",
    "CandidateCounts",
    "CandidateSource",
    "SimilarityScores",
    "Store",
    "describe_selection",
    "evenly",
    "kept_assets",
    "preference",
    "selection_figures",
    "selection_identity",
    "store_usable",
    "unranked",
    "write_selection",
]

NEIGHBOURS = 5  # which nearest real sample counts: 5 as in Naeem et al. (2020); fewer follow outliers, more blur
TRIES = 4  # rounds' worth of candidates, before a sampler is given up
_FILE = "selection.json"
_GOLDEN = (5**0.5 - 1) / 2
_SIZE_CLASSES = 8  # equal parts of the range of diameters, on a scale of ratios, of which as many are kept
_CHUNK = 32  # seeds a call; only a matter of progress
_COUNT = {name: integers(0) for name in ("generated", "kept", "copies", "unlike", "surplus", "spare", "unusable")}
_COUNT |= {name: integers(0) for name in ("kept_unlike", "real")}
_KINDS = {kind: mappings(objects({}, _COUNT)) for kind in ("nodules", "lungs")}
_COUNTS = objects(_KINDS, {"grown_from": objects({"assets": integers(1), **_KINDS})})

_logger = logging.getLogger(__name__)

Store = Callable[..., Asset]
"""HU, mask or alpha, and `category` and `origin` by name -> the stored asset; InputError for what cannot be used."""


@dataclass(frozen=True, kw_only=True)
class CandidateCounts:
    """What became of the candidates of a category; `generated` is the sum of the others but `kept_unlike`.

    Args:
        generated: candidates.
        kept: stored as assets.
        copies: dropped as near-copies of training samples.
        unlike: dropped, and unlike real samples.
        surplus: dropped, and like real ones: not needed.
        unusable: refused by the library, or equal to another.
        kept_unlike: kept all the same, because there were no others.
        real: samples that ranked them; 0 where nothing did.
    """

    generated: int = 0
    kept: int = 0
    copies: int = 0
    unlike: int = 0
    surplus: int = 0
    unusable: int = 0
    kept_unlike: int = 0
    real: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, int]) -> "CandidateCounts":
        """The counts of a category in `selection.json`; format 1 called `surplus` `spare`."""
        named = {"surplus" if name == "spare" else name: count for name, count in values.items()}
        return cls(**{item.name: named[item.name] for item in fields(cls) if named.get(item.name) is not None})

    def __add__(self, other: "CandidateCounts") -> "CandidateCounts":
        sums = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        return CandidateCounts(**sums | {"real": max(self.real, other.real)})


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarityScores:
    """What is known of N candidates of a category.

    Args:
        copied: whether it is a near-copy of a training sample.
        unlike: whether it is in no real sample's sphere.
        distances: to R real samples of the category, R at least `NEIGHBOURS`; no column where nothing ranks them.
    """

    copied: Bool[np.ndarray, " n"]
    unlike: Bool[np.ndarray, " n"]
    distances: Float[np.ndarray, "n real"]


@dataclass(frozen=True, kw_only=True)
class CandidateSource:
    """Where candidates come from, and how they are chosen.

    Args:
        sampler: of wcapsgan_bundle.
        kind: nodules or lungs.
        selection: how they are chosen.
        real: what ranks them; None where nothing does.
        diameters_mm: range over which diameters are spread evenly, on a scale of ratios; None for those of training.
    """

    sampler: Any
    kind: SampleKind
    selection: Selection
    real: "ReferenceSet | None" = None
    diameters_mm: tuple[float, float] | None = None

    def draw(self, seeds: Sequence[int], category: str, *, first: int = 0) -> Samples:
        """One sample a seed; `first` of the category's candidates were drawn before."""
        names = tuple(str(seed) for seed in seeds)
        requested = [self._diameter_mm(first + index) for index in range(len(seeds))]
        chunks = self._chunks(seeds, category, requested)
        hu, mask = (np.concatenate(planes) for planes in zip(*chunks, strict=True))
        return Samples(
            hu=to_int16(hu),
            mask=mask.astype(np.float16),
            categories=(category,) * len(names),
            owners=names,
            names=names,
            spacing_mm=float(np.broadcast_to(self.sampler.spacing_mm, 2)[0]),
        )

    def score(self, samples: Samples, category: str) -> SimilarityScores:
        """Compares them with real ones; nothing is known of them where there are none."""
        return unranked(len(samples)) if self.real is None else self.real.score(samples, category)

    def size_classes(self, samples: Samples) -> Int[np.ndarray, " n"] | None:
        """Which of `_SIZE_CLASSES` equal parts of the range of diameters each sample is of; None without a range."""
        if self.diameters_mm is None:
            return None
        low, high = np.log(self.diameters_mm)
        place = (np.log(np.maximum(samples.diameter_mm, 0.1)) - low) / (high - low)
        return np.clip((place * _SIZE_CLASSES).astype(int), 0, _SIZE_CLASSES - 1)

    def _diameter_mm(self, index: int) -> float | None:
        """Of a candidate: multiples of the golden ratio, which are even over any number of candidates."""
        if self.diameters_mm is None:
            return None
        low, high = self.diameters_mm
        high = min(high, getattr(self.sampler, "largest_mm", high))
        return float(low * (high / low) ** ((index + 1) * _GOLDEN % 1))

    def _chunks(
        self, seeds: Sequence[int], category: str, diameters_mm: Sequence[float | None]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for begin in tqdm(
            range(0, len(seeds), _CHUNK), desc=category, leave=False, disable=len(seeds) <= _CHUNK or None
        ):
            part = list(seeds[begin : begin + _CHUNK])
            batch = self.sampler(part, [category] * len(part), list(diameters_mm[begin : begin + _CHUNK]))
            yield np.asarray(batch["hu"]), np.asarray(batch["alpha" if self.kind == "nodules" else "mask"])


def unranked(count: int) -> SimilarityScores:
    """Scores of candidates that nothing is known of."""
    nothing = np.zeros(count, np.bool_)
    return SimilarityScores(copied=nothing, unlike=nothing, distances=np.zeros((count, 0)))


def preference(scores: SimilarityScores, strategy: SelectionStrategy, *, seed: int) -> Int[np.ndarray, " kept"]:
    """Places of all candidates that are no copies, those to keep first.

    Args:
        scores: of the candidates.
        strategy: the rule; where nothing ranks them, they stay in the order of generation.
        seed: of the order in which real samples choose.
    """
    free = ~scores.copied
    if strategy == "none" or not scores.distances.shape[1]:
        return np.flatnonzero(free)
    like, unlike = np.flatnonzero(free & ~scores.unlike), np.flatnonzero(free & scores.unlike)
    nearness = np.sort(scores.distances, axis=1)[:, NEIGHBOURS - 1]
    if strategy == "nearest":
        first = _nearest_first(like, nearness)
    else:
        first = like[_in_turns(scores.distances[like], seed=seed)]
    return np.concatenate([first, _nearest_first(unlike, nearness)])


def evenly(order: Int[np.ndarray, " n"], classes: Int[np.ndarray, " n"], wanted: int) -> Int[np.ndarray, " n"]:
    """An order whose first ones are as many of each class, as far as there are so many; within a class as it was.

    Args:
        order: places, the best first.
        classes: of each, in this order.
        wanted: how many will be taken.
    """
    turn = np.zeros(len(order), np.int64)
    for name in np.unique(classes):
        own = classes == name
        turn[own] = np.arange(int(own.sum()))
    level = next((n for n in range(1, len(order) + 1) if int((turn < n).sum()) >= wanted), len(order))
    early = turn < level
    return np.concatenate([order[early], order[~early]])


def _nearest_first(places: Int[np.ndarray, " n"], nearness: Float[np.ndarray, " all"]) -> Int[np.ndarray, " n"]:
    return places[np.argsort(nearness[places], kind="stable")]


def _in_turns(distances: Float[np.ndarray, "n real"], *, seed: int) -> Int[np.ndarray, " n"]:
    """Candidates in the order in which real samples, in rounds of a new random order, take the nearest that is left."""
    rng, left, taken = np.random.default_rng(seed), distances.copy(), list[int]()
    while len(taken) < len(left):
        for real in rng.permutation(left.shape[1])[: len(left) - len(taken)]:
            nearest = int(left[:, real].argmin())
            left[nearest] = np.inf
            taken.append(nearest)
    return np.array(taken, dtype=np.int64)


def kept_assets(
    source: CandidateSource, category: str, wanted: int, seeds: Sequence[int], store: Store
) -> tuple[list[Asset], CandidateCounts]:
    """Draws, ranks and stores.

    Args:
        source: of the candidates.
        category: asked for.
        wanted: distinct assets.
        seeds: of all candidates there may be, `TRIES` rounds' worth; the first also gives the real samples' order.
        store: puts one into the library.

    Returns:
        The assets, fewer than wanted when the seeds did not suffice, and what became of the candidates.
    """
    assets: dict[str, Asset] = {}
    counts, drawn = CandidateCounts(), 0
    while len(assets) < wanted and drawn < len(seeds):
        part = seeds[drawn : drawn + source.selection.candidates * (wanted - len(assets))]
        samples = source.draw(part, category, first=drawn)
        drawn += len(part)
        scores = source.score(samples, category)
        order = preference(scores, source.selection.strategy, seed=seeds[0])
        if (classes := source.size_classes(samples)) is not None:
            order = evenly(order, classes[order], wanted - len(assets))
        counts += _take(assets, samples, scores, order, wanted=wanted, store=store)
    return list(assets.values()), counts


def selection_identity(selection: Selection) -> dict[str, Any]:
    """What a run's choice of generated samples depends on: its rule, and the feature networks where it has a cohort.

    Raises:
        InputError: when the weights of a feature network are missing or damaged.
    """
    networks: dict[str, str | None] = {"features_nodules": None, "features_lungs": None}
    if selection.cohort:
        from lungsynth.similarity.reference import feature_weights

        networks = {f"features_{kind}": sha256 for kind, sha256 in feature_weights().items()}
    return {**selection.to_json(), **networks}


def write_selection(
    out: Path, selection: Selection, counts: Mapping[SampleKind, Mapping[str, CandidateCounts]], *, assets: int = 0
) -> Path:
    """Writes `selection.json`: the rule, and the counts by kind and category; of a run that grows, they add up.

    Args:
        out: folder of the library.
        selection: the rule.
        counts: of what was added.
        assets: how many the library had before: what was stopped once these counts were written begins with as many
            again, and its candidates count once.
    """
    before = _counts_before(out, assets) if assets and (out / _FILE).is_file() else {}
    content: dict[str, Any] = {"format": 2, **selection.to_json()}
    if before:
        content["grown_from"] = {"assets": assets, **_to_json(before)}
    for kind, categories in counts.items():
        earlier = before.get(kind, {})
        sums = {name: count + earlier.get(name, CandidateCounts()) for name, count in categories.items()}
        content |= _to_json({kind: sums})
    write_json(out / _FILE, content)
    return out / _FILE


def selection_figures(out: Path) -> dict[str, float]:
    """What `selection.json` of a run counts, as `<kind>_<category>_<count>`, and over categories as `<kind>_<count>`.

    Raises:
        InputError: when the file is missing or damaged.
    """
    figures: dict[str, float] = {}
    for kind, counts in _read_counts(out).items():
        for category, own in counts.items():
            figures |= {f"{kind}_{category}_{name}": float(value) for name, value in asdict(own).items()}
        total = sum(counts.values(), CandidateCounts())
        figures |= {f"{kind}_candidates_{name}": float(v) for name, v in asdict(total).items() if name != "real"}
    return figures


def _counts_before(out: Path, assets: int) -> dict[str, dict[str, CandidateCounts]]:
    """The counts of a library of so many assets."""
    content = _read(out)
    grown_from = content.get("grown_from")
    return _from_json(grown_from if grown_from and grown_from["assets"] == assets else content)


def _read_counts(out: Path) -> dict[str, dict[str, CandidateCounts]]:
    return _from_json(_read(out))


def _read(out: Path) -> dict[str, Any]:
    return dict(read_json(out / _FILE, _COUNTS, what="counts of generated samples", remedy="Use a new `out`."))


def _to_json(counts: Mapping[str, Mapping[str, CandidateCounts]]) -> dict[str, Any]:
    return {kind: {name: asdict(count) for name, count in own.items()} for kind, own in counts.items()}


def _from_json(content: Mapping[str, Any]) -> dict[str, dict[str, CandidateCounts]]:
    return {
        kind: {name: CandidateCounts.from_json(values) for name, values in content[kind].items()}
        for kind in ("nodules", "lungs")
    }


def describe_selection(figures: Mapping[str, float], *, ranked: bool) -> str:
    """A sentence on how the generated nodules and lungs were chosen.

    Args:
        figures: of `selection_figures`.
        ranked: whether a cohort ranked them.
    """
    if not ranked:
        return "Without a cohort, generated nodules and lungs are neither ranked nor compared with training samples"
    clauses = []
    for kind in ("nodules", "lungs"):
        generated, kept, copies, unlike = (
            f"{figures[f'{kind}_candidates_{name}']:.0f}" for name in ("generated", "kept", "copies", "unlike")
        )
        clauses.append(
            f"of {generated} generated {kind} {kept} were kept, {copies} were near-copies and {unlike} unlike real"
        )
    return f"By comparison with the cohort's training patients, {'; '.join(clauses)}"


def _take(
    assets: dict[str, Asset],
    samples: Samples,
    scores: SimilarityScores,
    order: np.ndarray,
    *,
    wanted: int,
    store: Store,
) -> CandidateCounts:
    """Stores samples in this order until there are as many as wanted."""
    kept, passed = np.zeros((2, len(samples)), np.bool_)
    for place in order:
        if len(assets) == wanted:
            break
        facts = {"category": samples.categories[place], "origin": samples.names[place]}
        asset = store_usable(store, samples.hu[place], samples.mask[place], **facts)
        fresh = asset is not None and asset.hash not in assets
        (kept if fresh else passed)[place] = True
        if asset is not None:
            assets[asset.hash] = asset
    dropped = ~(kept | passed | scores.copied)
    return CandidateCounts(
        generated=len(samples),
        kept=int(kept.sum()),
        copies=int(scores.copied.sum()),
        unlike=int((dropped & scores.unlike).sum()),
        surplus=int((dropped & ~scores.unlike).sum()),
        unusable=int(passed.sum()),
        kept_unlike=int((kept & scores.unlike).sum()),
        real=scores.distances.shape[1],
    )


def store_usable(store: Callable[..., Asset], *arrays: np.ndarray, **facts: Any) -> Asset | None:
    """The stored asset; None when the library refuses it: one bad sample must not end a long run."""
    try:
        return store(*arrays, **facts)
    except InputError as error:
        _logger.log(logging.DEBUG if isinstance(error, TooSmallError) else logging.WARNING, "passed over: %s", error)
        return None
