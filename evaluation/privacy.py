"""Privacy cards: for each generator a page that tells a data protection officer what its samples give away of patients.

Three questions, each with its interval:

- Are generated samples nearer to the patients that the generator learned from than to others? Of as many training
  patients as held-out ones, the share of generated samples whose nearest real one is a training patient's: 50 % is what
  a generator gives that remembers nobody.
- How many are copies? Those nearer to a training sample than 99 % of the held-out samples are (`similarity.copies`);
  the product refuses them, so that none is left.
- Can an attacker who has the generated samples tell whether a patient was in the training? He calls those members whose
  nearest generated sample is nearest (Hayes et al., 2019), and what counts is how many he finds at 1 % false alarms
  (Carlini et al., 2022). A patient's score is that of his nearest sample.

The card says whom the weights were trained on, as far as their sidecar tells: of patients of another training, all
three questions would compare strangers with strangers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluation.cohort_subsets import open_subset
from evaluation.enhancement import share_with_interval
from evaluation.generation.methods import TABLE_LUNG_PX
from evaluation.methods import Relation, relation_to
from evaluation.metrics.bootstrap import Estimate, PatientCounts, estimate, patient_index
from evaluation.runner import FORMAT, EvaluationResult
from lungsynth.bundles import lung_generator, nodule_rule, open_bundle, read_weights
from lungsynth.categories import CategoryRule
from lungsynth.config import SelectionConfig, default_bundles
from lungsynth.errors import InputError, NoSamplesError
from lungsynth.io.atomic import write_json, write_text
from lungsynth.run_folder import RunFolder
from lungsynth.seeds import SeedStream, seeds
from lungsynth.similarity.copies import coarse_distances, copy_threshold, find_copies
from lungsynth.similarity.samples import SampleKind, Samples, as_shown, join, read_lungs, read_nodules
from lungsynth.similarity.selection import CandidateSource

__all__ = ["FALSE_POSITIVES", "PrivacyCard", "PrivacyConfig", "evaluate_privacy", "measure_privacy", "true_positives"]

FALSE_POSITIVES = 0.01
_KINDS: tuple[SampleKind, ...] = ("nodules", "lungs")
_HELD_OUT = ("validation", "test")
_DRAWS = 20  # of as many training patients as are held out, over which the first figure is averaged
_RESAMPLES = 200  # of patients for its interval; each averages over all draws
_SENTENCES: Mapping[Relation, str] = {
    "held_out": "These weights were trained on the training patients of this cohort.",
    "other_collections": "These weights were trained on other collections than this cohort's, so that none of its "
    "patients is a member: the figures show what the questions give where nothing can be given away.",
    "may_have_trained": "It is not known which of these patients the weights were trained on: the figures below may "
    "underestimate what they give away. Train on this cohort to know.",
}


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """What to look at.

    Args:
        cohort: folder that `lungsynth prepare` wrote.
        out: folder of the cards.
        bundles: folder of the bundles.
        count: generated samples of each category.
        seed: of everything random.
    """

    cohort: Path
    out: Path
    bundles: Path = field(default_factory=default_bundles)
    count: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 100_000:
            raise InputError(f"`count` must lie in 1 to 100,000, got {self.count}: each is compared with all patients.")


@dataclass(frozen=True, kw_only=True)
class PrivacyCard:
    """What is known of a generator.

    Args:
        generated: samples.
        training: samples and patients that it may have learned from.
        held_out: samples and patients that it cannot have learned from, if it was trained on this cohort.
        nearer_to_training: share of generated samples whose nearest real one is a training sample, of equally many.
        training_distance: median relative distance of generated samples to their nearest training sample.
        held_out_distance: likewise to their nearest held-out sample.
        copies: share of generated samples that count as copies and are refused.
        members_found: share of training patients found at 1 % false positives.
        members_auc: probability that a training patient is ranked before a held-out one; 50 % is chance.
        false_positives: the share of held-out patients that the number of them allows, at most 1 %.
    """

    generated: int
    training: tuple[int, int]
    held_out: tuple[int, int]
    nearer_to_training: Estimate
    training_distance: float
    held_out_distance: float
    copies: Mapping[str, float | int | None]
    members_found: Estimate
    members_auc: Estimate
    false_positives: float


def evaluate_privacy(config: PrivacyConfig) -> EvaluationResult:
    """Writes `privacy_nodules.md` and `privacy_lungs.md`, and their figures as `privacy.json`.

    Raises:
        InputError: when the cohort has no samples to compare with, a bundle cannot be used, or `out` holds other files.
    """
    subset = open_subset(config.cohort, "test")
    weights = {"nodules": read_weights(config.bundles, "wcapsgan")}
    weights["lungs"] = read_weights(config.bundles, "wcapsgan", file=lung_generator(TABLE_LUNG_PX).weights)
    identity = {"cohort": subset.cohort.identity, "count": config.count, "seed": config.seed}
    identity |= {kind: info.sha256 for kind, info in weights.items()}
    rule = nodule_rule(config.bundles)
    cards: dict[str, PrivacyCard] = {}
    pages: dict[str, str] = {}
    problems: list[str] = []
    with RunFolder(path=config.out, identity=identity).held():
        for kind in _KINDS:
            try:
                real = [_read(config.cohort, kind, splits, rule) for splits in (("training",), _HELD_OUT)]
            except NoSamplesError as error:
                problems.append(f"{kind}: no card, {error}")
                continue
            generated = _generate(config, kind, real[0])
            cards[kind] = measure_privacy(generated, *real, flips=kind == "nodules", seed=config.seed)
            relation = relation_to(subset, weights[kind].sidecar)
            pages[kind] = card_text(kind, cards[kind], relation, weights[kind].sha256)
            write_text(config.out / f"privacy_{kind}.md", pages[kind])
        if not cards:
            raise InputError(f"{config.cohort}: {'; '.join(problems)}")
        table = {"format": FORMAT, **identity, "cards": {kind: asdict(card) for kind, card in cards.items()}}
        write_json(config.out / "privacy.json", table)
    return EvaluationResult(
        out=config.out, name="privacy", table=table, markdown="\n".join(pages.values()), problems=tuple(problems)
    )


def measure_privacy(generated: Samples, training: Samples, held_out: Samples, *, flips: bool, seed: int) -> PrivacyCard:
    """Answers the three questions.

    Args:
        generated: samples of the generator, as they are shown.
        training: all samples of the patients whom it learned from, as they are shown.
        held_out: those of others.
        flips: whether a mirror image is the same sample.
        seed: of everything random.
    """
    to_training = find_copies(generated, training, flips=flips)
    to_held_out = find_copies(generated, held_out, flips=flips)
    by_chance = find_copies(held_out, training, flips=flips)
    copied = copy_threshold(by_chance, held_out).copied(to_training, generated)
    members, strangers = (find_copies(real, generated, flips=flips).distances for real in (training, held_out))
    found, auc, false_positives = _members(members, training.owners, strangers, held_out.owners, seed=seed)
    return PrivacyCard(
        generated=len(generated),
        training=(len(training), len(set(training.owners))),
        held_out=(len(held_out), len(set(held_out.owners))),
        nearer_to_training=_nearer(generated, training, held_out, flips=flips, seed=seed),
        training_distance=float(np.median(to_training.distances)),
        held_out_distance=float(np.median(to_held_out.distances)),
        copies=share_with_interval(int(copied.sum()), len(generated)),
        members_found=found,
        members_auc=auc,
        false_positives=false_positives,
    )


def true_positives(
    members: Float[np.ndarray, " members"], strangers: Float[np.ndarray, " strangers"], *, false_positives: float
) -> float:
    """Share of members who are nearer than all strangers but the share of false positives.

    Args:
        members: distance of each to the nearest generated sample.
        strangers: likewise.
        false_positives: share of the strangers that may be nearer; rounded down to a whole number of them.
    """
    allowed = int(np.floor(false_positives * len(strangers)))
    limit = np.sort(strangers)[allowed] if allowed < len(strangers) else np.inf
    return float((members < limit).mean())


def _members(
    members: np.ndarray, member_owners: Sequence[str], strangers: np.ndarray, owners: Sequence[str], *, seed: int
) -> tuple[Estimate, Estimate, float]:
    """Members found, area under the curve, and the false positives that the number of strangers allows."""
    inside, outside = (_by_patient(*both) for both in ((members, member_owners), (strangers, owners)))
    groups = [[f"training/{name}" for name in inside], [f"held out/{name}" for name in outside]]
    first, second = np.array(list(inside.values())), np.array(list(outside.values()))

    def figures(counts: PatientCounts) -> list[float]:
        drawn = counts.astype(int)
        ours, others = np.repeat(first, drawn[: len(first)]), np.repeat(second, drawn[len(first) :])
        before = (ours[:, None] < others[None]).mean() + (ours[:, None] == others[None]).mean() / 2
        return [true_positives(ours, others, false_positives=FALSE_POSITIVES), float(before)]

    found, auc = estimate(groups, figures, n=[len(first), len(first)], seed=seed)
    return found, auc, float(np.floor(FALSE_POSITIVES * len(second)) / len(second))


def _by_patient(distances: np.ndarray, owners: Sequence[str]) -> dict[str, float]:
    """The smallest distance of each patient's samples."""
    smallest: dict[str, float] = {}
    for owner, distance in zip(owners, distances.tolist(), strict=True):
        smallest[owner] = min(distance, smallest.get(owner, np.inf))
    return dict(sorted(smallest.items()))


def _nearer(generated: Samples, training: Samples, held_out: Samples, *, flips: bool, seed: int) -> Estimate:
    """Share of generated samples that are nearer to training than to held-out patients, of equally many patients."""
    names, near = zip(*(_by_owner(generated, real, flips=flips) for real in (training, held_out)), strict=True)
    rng = np.random.default_rng(seed)
    smaller = min(map(len, names))
    draws = [[rng.permutation(len(own)) for own in names] for _ in range(_DRAWS)]

    def share(counts: PatientCounts) -> list[float]:
        drawn = counts[: len(names[0])] > 0, counts[len(names[0]) :] > 0
        shares = []
        for orders in draws:
            rows = [order[drawn[side][order]][:smaller] for side, order in enumerate(orders)]
            size = min(map(len, rows))
            if size:
                first, second = (near[side][rows[side][:size]].min(axis=0) for side in (0, 1))
                shares.append(float((first < second).mean() + (first == second).mean() / 2))
        return [float(np.mean(shares)) if shares else float("nan")]

    groups = [[f"training/{name}" for name in names[0]], [f"held out/{name}" for name in names[1]]]
    return estimate(groups, share, n=[len(generated)], seed=seed, resamples=_RESAMPLES, recentre=True)[0]


def _by_owner(generated: Samples, real: Samples, *, flips: bool) -> tuple[list[str], np.ndarray]:
    """The patients, and the distance of each generated sample to the nearest one of each patient (patient, sample)."""
    distances = coarse_distances(generated, real, flips=flips)
    names = sorted(set(real.owners))
    index = patient_index(real.owners, names)
    return names, np.stack([distances[:, index == place].min(axis=1) for place in range(len(names))])


def _read(cohort: Path, kind: SampleKind, splits: Sequence[str], rule: CategoryRule) -> Samples:
    """The samples of some splits, as they are shown; a split without any is left out while there are others."""
    parts, lacking = [], None
    for split in splits:
        try:
            if kind == "nodules":
                parts.append(read_nodules(cohort, split, largest_only=split != "training", tolerant=True, rule=rule))
            else:
                parts.append(read_lungs(cohort, split, tolerant=True))
        except NoSamplesError as error:
            lacking = error
    if not parts:
        raise lacking or NoSamplesError(f"{cohort}: has no {kind}.")
    return as_shown(join(parts), kind)


def _generate(config: PrivacyConfig, kind: SampleKind, like: Samples) -> Samples:
    """Samples of the generator in equal numbers of its categories, on the grid of real ones."""
    if kind == "nodules":
        sampler = open_bundle(config.bundles, "wcapsgan")
    else:
        sampler = open_bundle(config.bundles, "wcapsgan", **lung_generator(TABLE_LUNG_PX)._asdict())
    source = CandidateSource(sampler=sampler, kind=kind, selection=SelectionConfig().resolve(None))
    stream = SeedStream.GENERATED_NODULES if kind == "nodules" else SeedStream.GENERATED_LUNGS
    parts = [
        source.draw(seeds(config.seed, stream, index, n=config.count), category)
        for index, category in enumerate(sampler.categories)
    ]
    shown = as_shown(join(parts), kind)
    if shown.hu.shape[1:] != like.hu.shape[1:]:
        raise InputError(
            f"`bundles`: its {kind} have {shown.hu.shape[-1]} pixels a side, those of `cohort` {like.hu.shape[-1]}. "
            "Prepare the cohort with the same `lung_size`."
        )
    return shown


def card_text(kind: str, card: PrivacyCard, relation: Relation, sha256: str) -> str:
    """The page of a generator, Markdown."""
    copies = card.copies
    lines = [
        f"# Privacy card: generated {kind}",
        "",
        f"Generator: wcapsgan_bundle, weights {sha256[:16]}. {_SENTENCES[relation]}",
        "",
        f"{card.generated:,} generated samples were compared with {card.training[0]:,} samples of {card.training[1]:,} "
        f"training patients and {card.held_out[0]:,} samples of {card.held_out[1]:,} held-out patients. Intervals hold "
        "95 %.",
        "",
        "| question | figure | if nothing is given away |",
        "| --- | --- | --- |",
        f"| Share of generated samples that are nearer to a training patient than to a held-out one | "
        f"{_percent(card.nearer_to_training)} | 50 % |",
        f"| Median distance to the nearest training sample (0 is the same image, 1 an unrelated one) | "
        f"{card.training_distance:.2f} | as the next |",
        f"| Median distance to the nearest held-out sample, of {card.held_out[0]:,} | {card.held_out_distance:.2f} | |",
        "| Copies: nearer to a training sample than 99 % of held-out samples are | "
        f"{copies['events']} of {copies['n']}: {_share(copies)} | 1 % |",
        "| Copies that reach a data set | 0: they are refused, and others take their places | 0 |",
        f"| Training patients that an attacker finds at {card.false_positives:.1%} false alarms | "
        f"{_percent(card.members_found)} | at most 1 % |",
        f"| Probability that he ranks a training patient before a held-out one | {_percent(card.members_auc)} | 50 % |",
        "",
        "The attacker has all generated samples and a patient's image, and calls those members whose nearest generated "
        f"sample is nearest. {_resolution(card)}",
        "",
    ]
    return "\n".join(lines)


def _resolution(card: PrivacyCard) -> str:
    """What so many held-out patients can tell of 1 % false alarms."""
    patients = card.held_out[1]
    if patients * FALSE_POSITIVES >= 1:
        return f"One of {patients:,} held-out patients is {1 / patients:.1%} of false alarms."
    return (
        f"With {patients:,} held-out patients, 1 % of false alarms is less than one patient: the figure is that of no "
        f"false alarm at all, and says little. It needs 100 held-out patients or more."
    )


def _percent(figure: Estimate) -> str:
    if figure.value is None:
        return "unknown"
    limits = "" if figure.low is None or figure.high is None else f" ({figure.low:.1%} to {figure.high:.1%})"
    return f"{figure.value:.1%}{limits}"


def _share(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"
