"""Classifier two-sample tests (Lopez-Paz and Oquab, 2017): how often a classifier can tell generated from real.

0.5: nobody can tell; 1: always. Cross-fitted: an answer comes from a classifier that saw neither the sample nor any
other of its patient. Both sides count evenly, whatever their numbers. Two classifiers: a small CNN that sees HU and
mask, and logistic regression on the features. A test that fails to tell may only be a weak classifier, so the floor
(training patients against held-out ones) and both stand in the tables. Of very few held-out patients nobody learns what
real is; then training patients are shown to the classifiers too, and only held-out ones are asked about.
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

__all__ = ["CorrectShare", "balanced_accuracy", "c2st_cnn", "c2st_logistic"]

_STEPS, _BATCH, _MAX_PX = 300, 32, 128
_FITS = 60  # steps of L-BFGS
_PENALTY = 1e-2  # of the logistic regression's squared weights

CorrectShare = tuple[Bool[np.ndarray, " real"], Bool[np.ndarray, " generated"]]
Classifier = Callable[[Tensor, Tensor, Tensor], Tensor]


def c2st_logistic(
    real: Vectors, generated: Vectors, folds: tuple[np.ndarray, np.ndarray], *, known: Vectors | None = None
) -> CorrectShare:
    """Logistic regression on features; True where it was right.

    Args:
        real: features (N, F).
        generated: features (M, F).
        folds: of either side, from `owner_folds`.
        known: of further real samples to learn from.
    """
    vectors = torch.from_numpy(np.concatenate([real, generated])).float()
    further = vectors[:0] if known is None else torch.from_numpy(known).float()
    return _cross_fit(vectors, len(real), folds, _logistic, further)


def c2st_cnn(
    real: Samples,
    generated: Samples,
    folds: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
    known: Samples | None = None,
) -> CorrectShare:
    """A small CNN on HU and mask; True where it was right.

    Args:
        real: samples of patients.
        generated: others, on the same grid.
        folds: of either side, from `owner_folds`.
        seed: of initial weights, order and augmentation.
        known: further real samples to learn from.
    """

    def train(x: Tensor, wanted: Tensor, unseen: Tensor) -> Tensor:
        return _train_cnn(x, wanted, unseen, seed=seed, flips=real.spacing_mm < 1.0)

    planes = torch.cat([_planes(real), _planes(generated)])
    further = planes[:0] if known is None or not len(known) else _planes(known)
    return _cross_fit(planes, len(real), folds, train, further)


def balanced_accuracy(
    right: CorrectShare, real: Float[np.ndarray, " real"], generated: Float[np.ndarray, " generated"]
) -> float:
    """Mean of the two sides' shares of right answers; weights say how often a sample was drawn."""
    return float((real @ right[0] / real.sum() + generated @ right[1] / generated.sum()) / 2)


def _cross_fit(
    x: Tensor, count: int, folds: tuple[np.ndarray, np.ndarray], classifier: Classifier, known: Tensor
) -> CorrectShare:
    if min(len(set(side.tolist())) for side in folds) < 2:
        raise InputError("A two-sample test needs two patients or more on each side: one learns, the other is asked.")
    fold, wanted = torch.from_numpy(np.concatenate(folds)), torch.ones(len(x))
    wanted[:count] = 0
    answers = torch.zeros(len(x))
    for index in range(int(fold.max()) + 1):
        unseen = fold == index
        if unseen.any():
            labels = torch.cat([wanted[~unseen], torch.zeros(len(known))])
            answers[unseen] = classifier(torch.cat([x[~unseen], known]), labels, x[unseen])
    right = ((answers > 0).float() == wanted).numpy()
    return right[:count], right[count:]


def _side_weights(wanted: Tensor) -> Tensor:
    share = wanted.mean().clamp(1e-6, 1 - 1e-6)
    return torch.where(wanted > 0, 0.5 / share, 0.5 / (1 - share))


def _logistic(x: Tensor, wanted: Tensor, unseen: Tensor) -> Tensor:
    """Log odds of the unseen ones."""
    mean, spread, weights = x.mean(0), x.std(0).clamp(min=1e-6), _side_weights(wanted)
    x, unseen = (x - mean) / spread, (unseen - mean) / spread
    slope = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([slope], max_iter=_FITS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        fit = functional.binary_cross_entropy_with_logits(x @ slope[1:] + slope[0], wanted, weight=weights)
        loss = fit + _PENALTY * slope[1:].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (unseen @ slope[1:] + slope[0]).detach()


def _planes(samples: Samples) -> Tensor:
    """HU in the networks' window and the mask, (N, 2, S, S), at most 128 pixels."""
    images = torch.cat([unit_images(samples.hu), torch.from_numpy(samples.mask.astype(np.float32))[:, None]], dim=1)
    return functional.avg_pool2d(images, max(images.shape[-1] // _MAX_PX, 1))


def _train_cnn(x: Tensor, wanted: Tensor, unseen: Tensor, *, seed: int, flips: bool) -> Tensor:
    """Trains from scratch; the log odds of the unseen ones are the mean over their mirror images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(_layer(2, 16), _layer(16, 32), _layer(32, 48), Reduce("b c h w -> b c", "mean"), nn.Linear(48, 1))
        )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=_STEPS)
    draw, sides = torch.Generator().manual_seed(seed), [(wanted == label).nonzero()[:, 0] for label in (0, 1)]
    for _ in range(_STEPS):
        chosen = torch.cat([side[torch.randint(len(side), (_BATCH // 2,), generator=draw)] for side in sides])
        images = _mirrored(x[chosen], draw) if flips else x[chosen]
        odds = network(images.contiguous(memory_format=torch.channels_last))[:, 0]
        loss = functional.binary_cross_entropy_with_logits(odds, wanted[chosen])
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
