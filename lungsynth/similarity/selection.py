"""Generated samples of a category: more are made than needed, ranked, and the first usable ones kept.

Candidate i of a category has a seed of its own. A round draws `candidates` for each sample that is still missing, so
the second one, which replaces copies and what cannot be used (an empty mask), is small. Nothing is stored but what is
kept. `selection.json` says what became of the others.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lungsynth.errors import InputError
from lungsynth.hounsfield import to_int16
from lungsynth.io.atomic import write_json
from lungsynth.placement.assets import Asset
from lungsynth.similarity.reference import ReferenceSet
from lungsynth.similarity.samples import SampleKind, Samples
from lungsynth.similarity.strategies import Selection, SimilarityScores, preference, unranked

__all__ = [
    "TRIES",
    "CandidateCounts",
    "CandidateSource",
    "Store",
    "kept_assets",
    "selection_figures",
    "store_usable",
    "write_selection",
]

TRIES = 4  # rounds' worth of candidates, before a sampler is given up
_FILE = "selection.json"
_CHUNK = 32  # seeds a call; only a matter of progress

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
        spare: dropped, and like real ones, which were not needed.
        unusable: refused by the library, or equal to another.
        kept_unlike: kept all the same, because there were no others.
        real: samples that ranked them; 0 where nothing did.
    """

    generated: int = 0
    kept: int = 0
    copies: int = 0
    unlike: int = 0
    spare: int = 0
    unusable: int = 0
    kept_unlike: int = 0
    real: int = 0

    def __add__(self, other: "CandidateCounts") -> "CandidateCounts":
        sums = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        return CandidateCounts(**sums | {"real": max(self.real, other.real)})


@dataclass(frozen=True, kw_only=True)
class CandidateSource:
    """Where candidates come from, and how they are chosen.

    Args:
        sampler: of wcapsgan_bundle (contract C6.5).
        mask: key of its masks, `alpha` or `mask`.
        selection: how they are chosen.
        real: what ranks them; None where nothing does.
    """

    sampler: Any
    mask: str
    selection: Selection
    real: ReferenceSet | None = None

    def draw(self, seeds: Sequence[int], category: str) -> Samples:
        """One sample a seed, diameters as in training."""
        names = tuple(str(seed) for seed in seeds)
        hu, mask = (np.concatenate(planes) for planes in zip(*self._chunks(seeds, category), strict=True))
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

    def _chunks(self, seeds: Sequence[int], category: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for begin in tqdm(range(0, len(seeds), _CHUNK), desc=category, leave=False, disable=len(seeds) <= _CHUNK):
            part = list(seeds[begin : begin + _CHUNK])
            batch = self.sampler(part, [category] * len(part), [None] * len(part))
            yield np.asarray(batch["hu"]), np.asarray(batch[self.mask])


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
    found: dict[str, Asset] = {}
    counts, drawn = CandidateCounts(), 0
    while len(found) < wanted and drawn < len(seeds):
        part = seeds[drawn : drawn + source.selection.candidates * (wanted - len(found))]
        drawn += len(part)
        samples = source.draw(part, category)
        scores = source.score(samples, category)
        order = preference(scores, source.selection.ranking, seed=seeds[0])
        counts += _take(found, samples, scores, order, wanted=wanted, store=store)
    return list(found.values()), counts


def write_selection(
    out: Path, selection: Selection, counts: Mapping[SampleKind, Mapping[str, CandidateCounts]]
) -> Path:
    """Writes `selection.json` (contract C8.2): the rule, and the counts by kind and category."""
    told: dict[str, Any] = dict(selection.to_json())
    for kind, categories in counts.items():
        told[kind] = {name: asdict(count) for name, count in categories.items()}
    write_json(out / _FILE, told)
    return out / _FILE


def selection_figures(out: Path) -> dict[str, float]:
    """What `selection.json` of a run counts, as `<kind>_<category>_<count>`, and over categories as `<kind>_<count>`.

    Raises:
        InputError: when the file is missing or damaged.
    """
    path = out / _FILE
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected what became of generated samples, got {error}. Use a new --out.") from error
    figures: dict[str, float] = {}
    for kind in ("nodules", "lungs"):
        for category, counts in told[kind].items():
            figures |= {f"{kind}_{category}_{name}": float(value) for name, value in counts.items()}
        total = sum((CandidateCounts(**counts) for counts in told[kind].values()), CandidateCounts())
        figures |= {f"{kind}_candidates_{name}": float(v) for name, v in asdict(total).items() if name != "real"}
    return figures


def _take(
    found: dict[str, Asset], samples: Samples, scores: SimilarityScores, order: np.ndarray, *, wanted: int, store: Store
) -> CandidateCounts:
    """Stores samples in this order until there are as many as wanted."""
    kept, passed = np.zeros((2, len(samples)), np.bool_)
    for place in order:
        if len(found) == wanted:
            break
        facts = {"category": samples.categories[place], "origin": samples.names[place]}
        asset = store_usable(store, samples.hu[place], samples.mask[place], **facts)
        fresh = asset is not None and asset.hash not in found
        (kept if fresh else passed)[place] = True
        if asset is not None:
            found[asset.hash] = asset
    dropped = ~(kept | passed | scores.copied)
    return CandidateCounts(
        generated=len(samples),
        kept=int(kept.sum()),
        copies=int(scores.copied.sum()),
        unlike=int((dropped & scores.unlike).sum()),
        spare=int((dropped & ~scores.unlike).sum()),
        unusable=int(passed.sum()),
        kept_unlike=int((kept & scores.unlike).sum()),
        real=scores.distances.shape[1],
    )


def store_usable(store: Callable[..., Asset], *arrays: np.ndarray, **facts: Any) -> Asset | None:
    """The stored asset; None when the library refuses it: one bad sample must not end a long run."""
    try:
        return store(*arrays, **facts)
    except InputError as error:
        _logger.warning("passed over: %s", error)
        return None
