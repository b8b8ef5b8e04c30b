"""Folds for cross-fitting, in which all samples of an owner stay together."""

from collections.abc import Sequence

import numpy as np

__all__ = ["owner_folds", "paired_folds"]

FOLDS = 3  # a classifier is trained on two thirds; more folds cost more trainings


def owner_folds(owners: Sequence[str], *, seed: int, folds: int = FOLDS) -> np.ndarray:
    """A fold (0 ..) for each sample; those of one owner share it."""
    names = sorted(set(owners))
    order = np.random.default_rng(seed).permutation(len(names))
    place = {names[index]: rank % folds for rank, index in enumerate(order)}
    return np.array([place[owner] for owner in owners], dtype=np.int64)


def paired_folds(folds: np.ndarray, owners: Sequence[str]) -> np.ndarray:
    """Folds of samples that were each made to match a real one: the fold of that one.

    A classifier that saw a sample's twin on the other side, of the same size and category, would answer the other
    side: pairs that are split make chance look like 0.4. An owner of several samples has the fold of most of them.

    Args:
        folds: of the real samples.
        owners: of as many matched ones.
    """
    names = np.array(owners, dtype=object)
    most = {name: int(np.bincount(folds[names == name]).argmax()) for name in set(owners)}
    return np.array([most[owner] for owner in owners], dtype=np.int64)
