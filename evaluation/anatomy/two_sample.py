"""Two-sample tests by forests: how well generated lungs are told from real ones, by anatomy and by patches of lung.

Predictions are cross-validated; all slices and patches of a patient, or of a generated lung, stay in one fold. Owners
count evenly, and so do both sides, so that 0.5 is chance. Between two sets of patients a forest may score below 0.5.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.ensemble import ExtraTreesClassifier

from evaluation.anatomy.measures import AnatomySet
from lungsynth.similarity.samples import owner_folds

__all__ = ["even_weights", "forest_accuracy", "patch_accuracy"]

_FOLDS = 5
_TREES = 100
_LEAF = 2  # samples at least in a leaf
_UNDEFINED = -1e4  # far from all values: that a slice has no such measure tells, too

_Side = tuple[np.ndarray, Sequence[str]]  # samples (N, F) and the owner of each


def forest_accuracy(generated: AnatomySet, real: AnatomySet, *, further: AnatomySet | None = None, seed: int) -> float:
    """Balanced accuracy of a forest on the measures; NaN where a side has fewer than two owners.

    Args:
        generated: one side.
        real: the other, of other owners.
        further: real slices that train and are not tested.
        seed: of folds and forest.
    """
    return _accuracy([(side.values, side.owners) for side in (generated, real, further) if side is not None], seed=seed)


def patch_accuracy(generated: AnatomySet, real: AnatomySet, *, further: AnatomySet | None = None, seed: int) -> float:
    """Balanced accuracy of a forest on patches, by patch; NaN where fewer than two owners of a side have any."""
    sides = [
        (side.features, [side.owners[place] for place in side.patch_of])
        for side in (generated, real, further)
        if side is not None
    ]
    return _accuracy(sides, seed=seed)


def even_weights(owners: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Weights of slices that let owners count evenly; their sum is 1."""
    _, inverse, counts = np.unique(np.array(owners), return_inverse=True, return_counts=True)
    return np.asarray(1 / counts[inverse] / len(counts), dtype=np.float64)


def _accuracy(sides: Sequence[_Side], *, seed: int) -> float:
    if min(len(set(owners)) for _, owners in sides[:2]) < 2:
        return float("nan")
    x = np.concatenate([values for values, _ in sides])
    x = np.where(np.isfinite(x), x, _UNDEFINED).astype(np.float32)
    side = np.repeat(np.arange(len(sides)), [len(owners) for _, owners in sides])
    label, fold = side == 0, np.full(len(x), -1)  # no fold tests what only trains
    for place, (_, owners) in enumerate(sides[:2]):
        fold[side == place] = owner_folds(owners, seed=seed, folds=_FOLDS)
    weights = np.concatenate([even_weights(owners) * len(set(owners)) for _, owners in sides])
    correct = np.zeros(len(x), dtype=bool)
    for index in range(_FOLDS):
        tested = fold == index
        if tested.any() and len(set(label[~tested].tolist())) > 1:
            correct[tested] = _predict(x, label, weights, tested, seed=seed) == label[tested]
    shares = [np.average(correct[side == place], weights=weights[side == place]) for place in (0, 1)]
    return float(np.mean(shares))


def _predict(x: np.ndarray, label: np.ndarray, weights: np.ndarray, tested: np.ndarray, *, seed: int) -> np.ndarray:
    """Labels of the tested samples, by a forest of the others that weighs both labels evenly."""
    trained = ~tested
    w = (
        weights[trained]
        / np.array([weights[trained & (label == one)].sum() for one in (False, True)])[label[trained].astype(int)]
    )
    forest = ExtraTreesClassifier(_TREES, min_samples_leaf=_LEAF, random_state=seed)
    forest.fit(x[trained], label[trained], sample_weight=w / w.mean())
    return np.asarray(forest.predict(x[tested]))
