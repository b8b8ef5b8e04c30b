"""A small convolutional classifier of isolated nodules, trained for a fixed number of steps.

Batches draw the categories evenly (or as frequent as they are), and within a category by the examples' weights. The
state with the best balanced accuracy on the validation nodules is kept; equal ones give way to the lower loss.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops.layers.torch import Reduce
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from evaluation.utility.patches import Examples
from evaluation.utility.subcohort import CATEGORIES
from lungsynth.hounsfield import NETWORK_WINDOW

__all__ = ["NoduleClassifier", "Trained", "TrainingSettings", "balanced_accuracy", "mean_hu_rule", "train_classifier"]

_OFFSET_HU = 30.0  # kernels and scanners differ by so much
_NOISE_HU = 20.0
_SHIFT_PX = 4
_SCALE_HU = (NETWORK_WINDOW.high_hu - NETWORK_WINDOW.low_hu) / 2  # of one unit

Probabilities = Float[np.ndarray, "n categories"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how fast.

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
class Trained:
    """What a training gave: probabilities of the judged nodules, and the balanced accuracy that chose the state."""

    probabilities: Probabilities
    validation: float


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
    examples: Examples,
    validation: Examples,
    judged: Examples,
    *,
    seed: int,
    balanced: bool = True,
    settings: TrainingSettings | None = None,
) -> Trained:
    """Trains from scratch; the same arguments give the same result on one machine.

    Args:
        examples: to train on.
        validation: chooses the state.
        judged: to answer on.
        seed: of start, draws and augmentation.
        balanced: whether batches draw the categories evenly.
        settings: how long and how fast.
    """
    chosen = settings or TrainingSettings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NoduleClassifier()
        optimizer = torch.optim.AdamW(network.parameters(), lr=chosen.learning_rate, weight_decay=1e-3)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.steps)
        images, labels = _images(examples), torch.from_numpy(examples.category)
        draws = torch.from_numpy(_draw_weights(examples, balanced=balanced))
        marks = {round(chosen.steps * (k + 1) / chosen.validations) for k in range(chosen.validations)}
        best, state = (-1.0, 0.0), network.state_dict()
        for step in range(1, chosen.steps + 1):
            picked = torch.multinomial(draws, chosen.batch_size, replacement=True)
            network.train()
            loss = functional.cross_entropy(network(_augmented(images[picked])), labels[picked])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
            if step in marks and (score := _score(network, validation)) > best:
                best, state = score, {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(state)
        return Trained(probabilities=_predict(network, judged), validation=best[0])


def balanced_accuracy(answers: Int64[np.ndarray, " n"], category: Int64[np.ndarray, " n"]) -> float:
    """Mean over the categories that occur of the share that is right."""
    return float(np.mean([(answers[category == known] == known).mean() for known in np.unique(category)]))


def mean_hu_rule(examples: Examples, judged: Examples) -> Probabilities:
    """The trivial answer: the category whose median of mean HU in the mask lies nearest."""
    mean_hu = examples.mean_hu
    levels = [np.median(mean_hu[examples.category == index]) for index in range(len(CATEGORIES))]
    distance = np.abs(judged.mean_hu[:, None] - np.array(levels)[None, :])
    return np.eye(len(CATEGORIES))[distance.argmin(axis=1)]


def _draw_weights(examples: Examples, *, balanced: bool) -> Float[np.ndarray, " n"]:
    weight = examples.weight
    if not balanced:
        return weight
    return np.asarray(weight / np.bincount(examples.category, weight, len(CATEGORIES))[examples.category])


def _images(examples: Examples) -> Tensor:
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


def _predict(network: nn.Module, examples: Examples) -> Probabilities:
    network.eval()
    with torch.no_grad():
        found = [functional.softmax(network(part), dim=1) for part in _images(examples).split(128)]
    return torch.cat(found).double().numpy()


def _score(network: nn.Module, validation: Examples) -> tuple[float, float]:
    probabilities = _predict(network, validation)
    own = probabilities[np.arange(len(validation)), validation.category]
    return balanced_accuracy(probabilities.argmax(axis=1), validation.category), float(np.log(own + 1e-9).mean())
