"""Samples of a cohort with what the feature networks are to learn of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.features.targets import NODULE_CLASSES, lung_classes, lung_targets, nodule_targets
from lungsynth.errors import InputError
from lungsynth.similarity.features import unit_images
from lungsynth.similarity.samples import SampleKind, read_lungs, read_nodules

__all__ = ["FeatureData", "read_feature_data"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureData:
    """Samples with what is to be learnt of them.

    Args:
        images: float32 (N, 1, S, S) in [-1, 1].
        classes: int64 (N,).
        targets: float32 (N, T), NaN where unknown.
        names: of the targets.
        owners: patients.
        sources: names of the collections that they come from.
    """

    images: Tensor
    classes: Tensor
    targets: Tensor
    names: tuple[str, ...]
    owners: tuple[str, ...]
    sources: frozenset[str]


def read_feature_data(cohort: Path, kind: SampleKind, section: str) -> FeatureData:
    """Reads a section of a cohort.

    Raises:
        InputError: when it has no such samples.
    """
    if kind == "nodules":
        samples = read_nodules(cohort, section, largest_only=section != "training")
        samples = samples.take([i for i, name in enumerate(samples.categories) if name in NODULE_CLASSES])
        classes = np.array([NODULE_CLASSES.index(name) for name in samples.categories])
        targets = nodule_targets(samples, cohort)
    else:
        samples = read_lungs(cohort, section)
        classes, targets = lung_classes(samples), lung_targets(samples)
    if not len(samples):
        raise InputError(f"{cohort}: its {section} part has no {kind} to learn features from.")
    return FeatureData(
        images=unit_images(samples.hu),
        classes=torch.from_numpy(classes),
        targets=torch.from_numpy(np.stack(list(targets.values()), axis=1).astype(np.float32)),
        names=tuple(targets),
        owners=samples.owners,
        sources=_sources(cohort, kind, section),
    )


def _sources(cohort: Path, kind: SampleKind, section: str) -> frozenset[str]:
    entries = json.loads((cohort / f"{kind}.json").read_text()).get(section, [])
    return frozenset(str(entry.get("source")) for entry in entries)
