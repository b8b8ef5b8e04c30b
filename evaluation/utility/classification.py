"""Experiment (b): a classifier of nodules' textures, trained on few patients with and without added nodules.

It is the paper's use of its images (200 generated ones of each category), with the patches that the generator makes:
see `patches`. A small convolutional network is trained for a fixed number of steps. Batches draw the categories evenly
(or as frequent as they are), and within a category all examples by their weights, real or added. The state with the
best balanced accuracy on the validation nodules is kept; of equal ones that with the lower loss.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops.layers.torch import Reduce
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from evaluation.methods import digest_of
from evaluation.runner import RecordStore
from evaluation.utility.arms import Arm
from evaluation.utility.estimates import PatientTable, ShareColumns, share_table
from evaluation.utility.patches import (
    HeldOutNodules,
    NoduleExamples,
    copy_examples,
    generate_examples,
    join_examples,
    read_examples,
)
from evaluation.utility.subcohort import CATEGORIES, SubCohort
from lungsynth.cohort.reader import Cohort
from lungsynth.hounsfield import NETWORK_WINDOW

__all__ = [
    "MEAN_HU",
    "SHARES",
    "ClassifierTraining",
    "ExamplePools",
    "NoduleClassifier",
    "NoduleSource",
    "TrainedClassifier",
    "added_nodules",
    "balanced_accuracy",
    "classification_store",
    "classification_table",
    "mean_hu_rule",
    "run_classification",
    "train_classifier",
]

_FORMAT = 2  # of the records
MEAN_HU = Arm(name="mean_hu", title="no network: mean HU in the outline")

_RECALLS = {f"recall, {name}": ((name, f"{name}/n"),) for name in CATEGORIES}
SHARES: ShareColumns = {"balanced_accuracy": tuple(pair for pairs in _RECALLS.values() for pair in pairs), **_RECALLS}

# Augmentation: what differs between scans and is no texture.
_OFFSET_HU = 30.0  # kernels and scanners differ by about so much
_NOISE_HU = 20.0  # standard deviation at most
_SHIFT_PX = 4
_SCALE_HU = (NETWORK_WINDOW.high_hu - NETWORK_WINDOW.low_hu) / 2  # HU in one unit of the network's input
_BATCH = 128  # images at a time when predicting; memory only

Probabilities = Float[np.ndarray, "n categories"]


@dataclass(frozen=True, kw_only=True)
class NoduleSource:
    """A generator of nodules.

    Args:
        open: builds the sampler.
        sha256: of its weights.
        split_hash: of the cohort that it was trained on; None where unknown.
        own: whether it was trained on the few patients alone.
    """

    open: Callable[[], Any]
    sha256: str
    split_hash: str | None
    own: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """The budget of a training, the same for all arms.

    Args:
        steps: of the optimiser.
        batch_size: of a step.
        learning_rate: at its highest; a cosine takes it to zero.
        validations: evenly spread over the steps.
    """

    steps: int = 400
    batch_size: int = 32
    learning_rate: float = 2e-3
    validations: int = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedClassifier:
    """Probabilities of the evaluated nodules, and the balanced accuracy that chose the state."""

    probabilities: Probabilities
    validation: float


class ExamplePools:
    """The examples of one sub-cohort, made when first needed.

    Args:
        cohort: few patients.
        generator: of nodules.
        largest: added samples of the largest arm.
    """

    def __init__(self, cohort: SubCohort, generator: NoduleSource, *, largest: int) -> None:
        self.cohort, self.generator = cohort, generator
        self._counts = _even_counts(largest)

    @cached_property
    def real(self) -> NoduleExamples:
        """The patients' own nodules."""
        return read_examples(self.cohort.folder, Cohort.open(self.cohort.folder).split("training").nodules())

    @cached_property
    def generated(self) -> list[NoduleExamples]:
        """By category."""
        return generate_examples(self.generator.open(), self._counts, seed=self.cohort.seed)

    @cached_property
    def copied(self) -> list[NoduleExamples]:
        """By category."""
        return copy_examples(self.real, self._counts, seed=self.cohort.seed)

    def examples(self, arm: Arm, added: int) -> NoduleExamples:
        """What an arm trains on; added samples are distributed evenly over the categories."""
        sets = [self.real] if arm.real else []
        if added:
            pools = self.generated if arm.added == "generated" else self.copied
            counts = zip(pools, _even_counts(added), strict=True)
            sets += [pool.take(range(count)) for pool, count in counts if count]
        return join_examples(sets)


def classification_store(folder: Path) -> RecordStore[Mapping[str, Any]]:
    """The records of runs: `added`, `validation`, `predictions` (by nodule id)."""
    return RecordStore(folder=folder / "classification", to_json=dict, from_json=dict)


def run_classification(
    arm: Arm,
    pools: ExamplePools,
    validation: HeldOutNodules,
    evaluated: HeldOutNodules,
    store: RecordStore[Mapping[str, Any]],
    *,
    identity: str,
    training: ClassifierTraining,
) -> Mapping[str, Any]:
    """The record of one run, kept or made.

    Args:
        arm: of the experiment.
        pools: of the sub-cohort.
        validation: chooses the state of the network.
        evaluated: nodules to predict.
        store: of records.
        identity: changes with what is evaluated on.
        training: budget.
    """
    cohort, added = pools.cohort, added_nodules(arm, pools.cohort)
    facts = [_FORMAT, identity, cohort.split_hash, cohort.seed, asdict(arm), added, asdict(training)]
    facts += [pools.generator.sha256 if arm.added == "generated" else None]

    def run() -> Mapping[str, Any]:
        examples, score = pools.examples(arm, added), None
        if arm == MEAN_HU:
            probabilities = mean_hu_rule(examples, evaluated.examples)
        else:
            trained = train_classifier(
                examples,
                validation.examples,
                evaluated.examples,
                seed=cohort.seed,
                balanced=not arm.plain,
                training=training,
            )
            probabilities, score = trained.probabilities, trained.validation
        predictions = dict(zip(evaluated.ids, probabilities.argmax(axis=1).tolist(), strict=True))
        return {"added": added, "validation": score, "predictions": predictions}

    return store.get(f"{cohort.name}-{arm.name}", run, identity=digest_of(facts))


def added_nodules(arm: Arm, cohort: SubCohort) -> int:
    """How many nodules an arm adds."""
    real = sum(cohort.nodules.get(name, 0) for name in CATEGORIES)
    return arm.count(real, categories=len(CATEGORIES))


def classification_table(record: Mapping[str, Any], evaluated: HeldOutNodules) -> PatientTable:
    """Correct predictions of a run by patient and category."""
    items = []
    for name, patient, category in zip(evaluated.ids, evaluated.patients, evaluated.examples.category, strict=True):
        label = CATEGORIES[int(category)]
        correct = float(record["predictions"][name] == int(category))
        items.append((patient, {label: correct, f"{label}/n": 1.0}))
    return share_table(items)


def _even_counts(total: int) -> Sequence[int]:
    """A total over the categories, as evenly as integers allow."""
    parts = len(CATEGORIES)
    return [int(count) for count in np.full(parts, total // parts) + (np.arange(parts) < total % parts)]


# The classifier


class NoduleClassifier(nn.Module):
    """Logits (B, 3) of images (B, 1, 64, 64) in [-1, 1]: four convolutions, each halving, and a mean over the rest."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64), *, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers, Reduce("b c h w -> b c", "mean"))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(widths[-1], len(CATEGORIES)))

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.features(image))
        return logits


def train_classifier(
    examples: NoduleExamples,
    validation: NoduleExamples,
    evaluated: NoduleExamples,
    *,
    seed: int,
    balanced: bool = True,
    training: ClassifierTraining | None = None,
) -> TrainedClassifier:
    """Trains from scratch; the same arguments give the same result on one machine.

    Args:
        examples: to train on.
        validation: chooses the state.
        evaluated: to predict.
        seed: of start, draws and augmentation.
        balanced: whether batches draw the categories evenly.
        training: budget.
    """
    budget = training or ClassifierTraining()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NoduleClassifier()
        optimizer = torch.optim.AdamW(network.parameters(), lr=budget.learning_rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.steps)
        images, labels = _images(examples), torch.from_numpy(examples.category)
        draw_weights = torch.from_numpy(_draw_weights(examples, balanced=balanced))
        validation_steps = {round(budget.steps * (k + 1) / budget.validations) for k in range(budget.validations)}
        best, state = (-1.0, 0.0), network.state_dict()
        for step in range(1, budget.steps + 1):
            batch = torch.multinomial(draw_weights, budget.batch_size, replacement=True)
            network.train()
            loss = functional.cross_entropy(network(_augmented(images[batch])), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if step in validation_steps and (score := _validation_score(network, validation)) > best:
                best, state = score, {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(state)
        return TrainedClassifier(probabilities=_predict(network, evaluated), validation=best[0])


def balanced_accuracy(predictions: Int64[np.ndarray, " n"], category: Int64[np.ndarray, " n"]) -> float:
    """Mean over the categories that occur of the share that is correct."""
    return float(np.mean([(predictions[category == label] == label).mean() for label in np.unique(category)]))


def mean_hu_rule(examples: NoduleExamples, evaluated: NoduleExamples) -> Probabilities:
    """The baseline: the category whose median of mean HU in the mask is nearest."""
    mean_hu = examples.mean_hu
    levels = [np.median(mean_hu[examples.category == index]) for index in range(len(CATEGORIES))]
    distance = np.abs(evaluated.mean_hu[:, None] - np.array(levels)[None, :])
    return np.eye(len(CATEGORIES))[distance.argmin(axis=1)]


def _draw_weights(examples: NoduleExamples, *, balanced: bool) -> Float[np.ndarray, " n"]:
    weight = examples.weight
    if not balanced:
        return weight
    return np.asarray(weight / np.bincount(examples.category, weight, len(CATEGORIES))[examples.category])


def _images(examples: NoduleExamples) -> Tensor:
    unit = NETWORK_WINDOW.to_unit(torch.from_numpy(examples.hu).float())
    return torch.unsqueeze(unit, 1).contiguous(memory_format=torch.channels_last)


def _augmented(images: Tensor) -> Tensor:
    """Turned by right angles, mirrored and shifted together; level and noise drawn for each."""
    turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))
    row, column = (int(value) for value in torch.randint(-_SHIFT_PX, _SHIFT_PX + 1, (2,)))
    images = torch.rot90(images, turns, (2, 3))
    images = torch.roll(images.flip(3) if mirrored else images, (row, column), (2, 3))
    level = (torch.rand(len(images), 1, 1, 1) * 2 - 1) * (_OFFSET_HU / _SCALE_HU)
    noise = torch.rand(len(images), 1, 1, 1) * (_NOISE_HU / _SCALE_HU) * torch.randn_like(images)
    return (images + level + noise).clamp(-1, 1)


def _predict(network: nn.Module, examples: NoduleExamples) -> Probabilities:
    network.eval()
    with torch.no_grad():
        probabilities = [functional.softmax(network(batch), dim=1) for batch in _images(examples).split(_BATCH)]
    return torch.cat(probabilities).double().numpy()


def _validation_score(network: nn.Module, validation: NoduleExamples) -> tuple[float, float]:
    """Balanced accuracy, and the mean log likelihood that decides between equal ones."""
    probabilities = _predict(network, validation)
    of_label = probabilities[np.arange(len(validation)), validation.category]
    accuracy = balanced_accuracy(probabilities.argmax(axis=1), validation.category)
    return accuracy, float(np.log(of_label + 1e-9).mean())
