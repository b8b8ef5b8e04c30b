"""Two generators that generate nothing. A figure that they pass says nothing of a method that passes it.

The memoriser hands out training samples. Its distances are those of training patients against held-out ones at the
same n: the floor, below which no generator can be expected to come. All that it makes are copies.
The average hands out the mean of eight training samples: the right densities and sizes, and no detail.
"""

from collections.abc import Callable

import numpy as np

from evaluation.generation.methods import GeneratedSamples, GenerationMethod, Requests
from lungsynth.similarity.samples import Samples

__all__ = ["AVERAGE", "MEMORISER", "baselines"]

MEMORISER, AVERAGE = "memoriser", "average"
_MEAN_OF = 8


def baselines(training: Samples, identity: str) -> list[GenerationMethod]:
    """Both, on the training samples of a cohort.

    Args:
        training: one slice a nodule; or lungs.
        identity: of the cohort.
    """
    makers: dict[str, tuple[str, Callable[[Requests], GeneratedSamples]]] = {
        MEMORISER: ("training samples (floor)", lambda requests: _memorised(requests, training)),
        AVERAGE: ("mean of 8 training samples", lambda requests: _averaged(requests, training)),
    }
    return [
        GenerationMethod(name=name, title=title, open=lambda make=make: make, identity=f"{identity}:2")  # type: ignore[misc]
        for name, (title, make) in makers.items()
    ]


def _memorised(requests: Requests, training: Samples) -> GeneratedSamples:
    """Each time the unused training sample of the category that is nearest in diameter; all again once none is left."""
    rng = np.random.default_rng(requests.seeds[0] if requests.seeds else 0)
    unused = {name: list(rng.permutation(training.of(name))) for name in sorted(set(requests.categories))}
    chosen = np.zeros(len(requests.categories), np.int64)
    for index in rng.permutation(len(chosen)):
        name, wanted = requests.categories[index], requests.diameters_mm[index]
        if not unused[name]:
            unused[name] = list(rng.permutation(training.of(name)))
        gaps = np.abs(training.diameter_mm[unused[name]] - wanted) if wanted is not None else [0.0]
        chosen[index] = unused[name].pop(int(np.argmin(gaps)))
    return GeneratedSamples(samples=training.take(chosen))


def _averaged(requests: Requests, training: Samples) -> GeneratedSamples:
    """The mean of 8 of the category: those nearest in diameter, of twice as many, where one is asked for."""
    hu, mask = [], []
    for seed, name, wanted in zip(requests.seeds, requests.categories, requests.diameters_mm, strict=True):
        own = training.of(name)
        if wanted is not None:
            own = own[np.argsort(np.abs(training.diameter_mm[own] - wanted), kind="stable")][: 2 * _MEAN_OF]
        picked = np.random.default_rng(seed).permutation(own)[:_MEAN_OF]
        hu.append(np.rint(training.hu[picked].mean(axis=0)).astype(np.int16))
        mask.append(training.mask[picked].astype(np.float32).mean(axis=0).astype(np.float16))
    names = tuple(f"seed {seed}" for seed in requests.seeds)
    return GeneratedSamples(
        samples=Samples(
            hu=np.stack(hu),
            mask=np.stack(mask),
            categories=requests.categories,
            owners=names,
            names=names,
            spacing_mm=training.spacing_mm,
        )
    )
