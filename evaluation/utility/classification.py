"""Experiment (b): a classifier of nodules' textures, trained on few patients with and without added nodules.

It is the paper's use of its images (200 generated ones a category), with the patches that the generator makes: see
`patches`. Within a category all examples count alike, real or added, and batches draw the categories evenly.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.utility.arms import Arm
from evaluation.utility.classifier import TrainingSettings, mean_hu_rule, train_classifier
from evaluation.utility.estimates import Shares, Table, share_table
from evaluation.utility.patches import Examples, Held, copied, generated, joined, read_examples
from evaluation.utility.subcohort import CATEGORIES, SubCohort
from lungsynth.io.atomic import write_bytes

__all__ = ["MEAN_HU", "SHARES", "NoduleSource", "Pools", "added_nodules", "classification_table", "run_classification"]

_FORMAT = 1
MEAN_HU = Arm(name="mean_hu", title="no network: mean HU in the outline")

_RECALLS = {f"recall, {name}": ((name, f"{name}/n"),) for name in CATEGORIES}
SHARES: Shares = {"balanced_accuracy": tuple(pair for pairs in _RECALLS.values() for pair in pairs), **_RECALLS}


@dataclass(frozen=True, kw_only=True)
class NoduleSource:
    """What generates nodules.

    Args:
        open: builds the sampler (contract C6.5).
        sha256: of its weights.
        split_hash: of the cohort that it was trained on; None where nobody knows.
    """

    open: Callable[[], Any]
    sha256: str
    split_hash: str | None


class Pools:
    """The examples of one sub-cohort, made when first asked for.

    Args:
        cohort: few patients.
        generator: of nodules.
        largest: added samples of the largest arm.
    """

    def __init__(self, cohort: SubCohort, generator: NoduleSource, *, largest: int) -> None:
        self.cohort, self.generator = cohort, generator
        self._counts = _shared(largest)

    @cached_property
    def real(self) -> Examples:
        """The patients' own nodules."""
        entries = json.loads((self.cohort.folder / "nodules.json").read_text())["training"]
        return read_examples(self.cohort.folder, entries)

    @cached_property
    def generated(self) -> list[Examples]:
        """By category."""
        return generated(self.generator.open(), self._counts, seed=self.cohort.seed)

    @cached_property
    def copied(self) -> list[Examples]:
        """By category."""
        return copied(self.real, self._counts, seed=self.cohort.seed)

    def examples(self, arm: Arm, added: int) -> Examples:
        """What an arm trains on; added samples are shared out evenly over the categories."""
        parts = [self.real] if arm.real else []
        if added:
            pools = self.generated if arm.added == "generated" else self.copied
            counts = zip(pools, _shared(added), strict=True)
            parts += [pool.take(range(count)) for pool, count in counts if count]
        return joined(parts)


def run_classification(
    arm: Arm, pools: Pools, validation: Held, judged: Held, folder: Path, *, identity: str, settings: TrainingSettings
) -> dict[str, Any]:
    """The record of one run, kept or made: answers on the judged nodules, and what chose the state.

    Args:
        arm: of the experiment.
        pools: of the sub-cohort.
        validation: chooses the state of the network.
        judged: answered on.
        folder: for records.
        identity: changes with what is judged on.
        settings: budget of the training.

    Returns:
        `added`, `validation`, `answers` (by nodule id).
    """
    cohort = pools.cohort
    added = added_nodules(arm, cohort)
    facts = [_FORMAT, identity, cohort.split_hash, cohort.seed, asdict(arm), added, asdict(settings)]
    facts += [pools.generator.sha256 if arm.added == "generated" else None]
    known = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    path = folder / "classification" / f"{cohort.name}-{arm.name}.json"
    if (kept := _read(path)) and kept.get("identity") == known:
        return kept
    examples = pools.examples(arm, added)
    if arm == MEAN_HU:
        probabilities, chosen = mean_hu_rule(examples, judged.examples), None
    else:
        trained = train_classifier(
            examples,
            validation.examples,
            judged.examples,
            seed=cohort.seed,
            balanced=not arm.plain,
            settings=settings,
        )
        probabilities, chosen = trained.probabilities, trained.validation
    answers = dict(zip(judged.ids, probabilities.argmax(axis=1).tolist(), strict=True))
    record = {"identity": known, "added": added, "validation": chosen, "answers": answers}
    write_bytes(path, json.dumps(record, separators=(",", ":")).encode())
    return record


def added_nodules(arm: Arm, cohort: SubCohort) -> int:
    """How many nodules an arm adds."""
    real = sum(cohort.nodules.get(name, 0) for name in CATEGORIES)
    return arm.count(real, categories=len(CATEGORIES))


def classification_table(record: Mapping[str, Any], judged: Held) -> Table:
    """Right answers of a run by patient and category."""
    items = []
    for name, patient, category in zip(judged.ids, judged.patients, judged.examples.category, strict=True):
        known = CATEGORIES[int(category)]
        right = float(record["answers"][name] == int(category))
        items.append((patient, {known: right, f"{known}/n": 1.0}))
    return share_table(items)


def _shared(total: int) -> Sequence[int]:
    """A total over the categories, as evenly as integers allow."""
    parts = len(CATEGORIES)
    return [int(count) for count in np.full(parts, total // parts) + (np.arange(parts) < total % parts)]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None
