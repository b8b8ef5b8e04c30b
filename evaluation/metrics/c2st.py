"""Classifier two-sample tests (Lopez-Paz and Oquab, 2017): how well a classifier tells generated from real samples.

0.5 is chance, 1 always correct. Predictions are cross-validated: each comes from a classifier that saw neither the
sample nor any other of its patient. Both sides count evenly, whatever their numbers. There are two classifiers: a small
CNN on HU and mask, and logistic regression on features. A result near 0.5 may only mean a weak classifier, so the
tables show both, and the floor (training patients against held-out ones). A handful of held-out patients does not show
what real samples look like; then training patients train the classifiers too, and only held-out ones are tested.
"""

from collections.abc import Callable

import numpy as np
import torch
from einops.layers.torch import Reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from evaluation.metrics.fid_kid import Vectors
from lungsynth.errors import InputError
from lungsynth.similarity.features import unit_images
from lungsynth.similarity.samples import Samples

__all__ = ["CNN_STEPS", "CorrectShare", "balanced_accuracy", "c2st_cnn", "c2st_logistic"]

# The classifiers' budgets are chosen by hand and equal for all rows of a table. A smaller one makes a weaker
# classifier, whose results are nearer to 0.5; results of different budgets cannot be compared.
CNN_STEPS = 300  # of the optimiser, for each fold
_CNN_BATCH = 32  # images, half of them real
_CNN_LEARNING_RATE = 3e-3  # of AdamW, at the peak of a one-cycle schedule
_MAX_PX = 128  # larger images are averaged down first: faster, and blind to the finest noise
_LBFGS_STEPS = 60  # of the logistic regression, at most; it stops earlier when it has converged
_L2_PENALTY = 1e-2  # of its squared weights, which few samples would leave unbounded; larger pulls results to 0.5

CorrectShare = tuple[Bool[np.ndarray, " real"], Bool[np.ndarray, " generated"]]
Classifier = Callable[[Tensor, Tensor, Tensor], Tensor]


def c2st_logistic(
    real: Vectors, generated: Vectors, folds: tuple[np.ndarray, np.ndarray], *, further_real: Vectors | None = None
) -> CorrectShare:
    """Logistic regression on features; True where it was correct.

    Args:
        real: features (N, F).
        generated: features (M, F).
        folds: of either side, from `owner_folds`.
        further_real: features of real samples that only train.
    """
    vectors = torch.from_numpy(np.concatenate([real, generated])).float()
    training_only = vectors[:0] if further_real is None else torch.from_numpy(further_real).float()
    return _cross_validate(vectors, len(real), folds, _logistic, training_only)


def c2st_cnn(
    real: Samples,
    generated: Samples,
    folds: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
    further_real: Samples | None = None,
    steps: int = CNN_STEPS,
) -> CorrectShare:
    """A small CNN on HU and mask; True where it was correct.

    Args:
        real: samples of patients.
        generated: others, on the same grid.
        folds: of either side, from `owner_folds`.
        seed: of initial weights, order and augmentation.
        further_real: real samples that only train.
        steps: of the optimiser, for each fold.
    """

    def classify(x: Tensor, labels: Tensor, unseen: Tensor) -> Tensor:
        return _train_cnn(x, labels, unseen, seed=seed, flips=real.spacing_mm < 1.0, steps=steps)

    planes = torch.cat([_planes(real), _planes(generated)])
    training_only = planes[:0] if further_real is None or not len(further_real) else _planes(further_real)
    return _cross_validate(planes, len(real), folds, classify, training_only)


def balanced_accuracy(
    correct: CorrectShare, real: Float[np.ndarray, " real"], generated: Float[np.ndarray, " generated"]
) -> float:
    """Mean of the two sides' shares of correct predictions; counts say how often a sample was drawn."""
    return float((real @ correct[0] / real.sum() + generated @ correct[1] / generated.sum()) / 2)


def _cross_validate(
    x: Tensor, n_real: int, folds: tuple[np.ndarray, np.ndarray], classifier: Classifier, training_only: Tensor
) -> CorrectShare:
    """Predicts each fold by a classifier of the other folds."""
    if min(len(set(side.tolist())) for side in folds) < 2:
        raise InputError("A two-sample test needs two patients or more on each side: one trains, the other is tested.")
    fold, labels = torch.from_numpy(np.concatenate(folds)), torch.ones(len(x))
    labels[:n_real] = 0
    log_odds = torch.zeros(len(x))
    for index in range(int(fold.max()) + 1):
        unseen = fold == index
        if unseen.any():
            training_labels = torch.cat([labels[~unseen], torch.zeros(len(training_only))])
            log_odds[unseen] = classifier(torch.cat([x[~unseen], training_only]), training_labels, x[unseen])
    correct = ((log_odds > 0).float() == labels).numpy()
    return correct[:n_real], correct[n_real:]


def _side_weights(labels: Tensor) -> Tensor:
    """Weights that let both sides count evenly."""
    share = labels.mean().clamp(1e-6, 1 - 1e-6)
    return torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))


def _logistic(x: Tensor, labels: Tensor, unseen: Tensor) -> Tensor:
    """Log odds of the unseen ones."""
    mean, spread, weights = x.mean(0), x.std(0).clamp(min=1e-6), _side_weights(labels)
    x, unseen = (x - mean) / spread, (unseen - mean) / spread
    slope = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([slope], max_iter=_LBFGS_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        fit = functional.binary_cross_entropy_with_logits(x @ slope[1:] + slope[0], labels, weight=weights)
        loss = fit + _L2_PENALTY * slope[1:].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (unseen @ slope[1:] + slope[0]).detach()


def _planes(samples: Samples) -> Tensor:
    """HU in the networks' window and the mask, (N, 2, S, S), at most 128 pixels."""
    images = torch.cat([unit_images(samples.hu), torch.from_numpy(samples.mask.astype(np.float32))[:, None]], dim=1)
    return functional.avg_pool2d(images, max(images.shape[-1] // _MAX_PX, 1))


def _train_cnn(x: Tensor, labels: Tensor, unseen: Tensor, *, seed: int, flips: bool, steps: int) -> Tensor:
    """Trains from scratch; the log odds of the unseen ones are the mean over their mirror images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(_layer(2, 16), _layer(16, 32), _layer(32, 48), Reduce("b c h w -> b c", "mean"), nn.Linear(48, 1))
        )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=_CNN_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _CNN_LEARNING_RATE, total_steps=steps)
    draw, sides = torch.Generator().manual_seed(seed), [(labels == label).nonzero()[:, 0] for label in (0, 1)]
    for _ in range(steps):
        batch = torch.cat([side[torch.randint(len(side), (_CNN_BATCH // 2,), generator=draw)] for side in sides])
        images = _mirrored(x[batch], draw) if flips else x[batch]
        log_odds = network(images.contiguous(memory_format=torch.channels_last))[:, 0]
        loss = functional.binary_cross_entropy_with_logits(log_odds, labels[batch])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()
    views = [unseen, unseen.flip(-1), unseen.flip(-2), unseen.flip(-1, -2)] if flips else [unseen]
    with torch.inference_mode():
        return torch.stack([network(view)[:, 0] for view in views]).mean(0)


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.SiLU())


def _mirrored(images: Tensor, draw: torch.Generator) -> Tensor:
    flips = torch.rand(2, len(images), 1, 1, 1, generator=draw) < 0.5
    images = torch.where(flips[0], images.flip(-1), images)
    return torch.where(flips[1], images.flip(-2), images)
