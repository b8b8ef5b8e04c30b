"""The methods of Table I: which there are, where their weights lie, and whether they may know the judged patients.

`dense_unet` is lung_seg_bundle as it is; each `configs/inference_NAME.json` laid over it is another method, with
weights `NAME.pt` and sidecar in a folder of their own.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from evaluation.cohort_subsets import Subset
from evaluation.metrics.matching import CandidateDetector
from evaluation.paper import METHOD_NAMES
from lungsynth.bundles import bundle_root, open_bundle, read_weights
from lungsynth.errors import InputError
from lungsynth.weights import read_weights_file

__all__ = [
    "OWN",
    "Method",
    "Relation",
    "check_relations",
    "count_parameters",
    "find_methods",
    "known_methods",
    "open_detector",
    "relation_to",
]

_logger = logging.getLogger(__name__)

OWN = "dense_unet"
_BUNDLE = "lung_seg"
_OVERLAY = "inference_"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # measured, not trained

Relation = Literal["held_out", "other_collections", "may_have_trained"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method with weights.

    Args:
        name: `dense_unet`, or that of an overlay.
        bundles: folder of the bundles.
        weights: name of a file of the bundle's `models/`, or a path.
        sha256: of the weights.
        sidecar: what they say of themselves (contract C6.1).
        parameters: trained numbers in the weights.
    """

    name: str
    bundles: Path
    weights: str | Path
    sha256: str
    sidecar: Mapping[str, Any]
    parameters: int

    @property
    def title(self) -> str:
        """As the tables name it."""
        return METHOD_NAMES.get(self.name, self.name)

    @property
    def configs(self) -> tuple[str, ...]:
        """Files of `configs/`, later ones on top."""
        return ("inference.json",) if self.name == OWN else ("inference.json", f"{_OVERLAY}{self.name}.json")

    @property
    def train_minutes(self) -> float | None:
        """What the training took, where the sidecar tells."""
        value = self.sidecar.get("train_minutes")
        return float(value) if isinstance(value, int | float) else None


def known_methods(bundles: Path) -> list[str]:
    """Names of all methods that the bundle has configs for, in the paper's order, others before the product's."""
    root = bundle_root(bundles, _BUNDLE)
    names = {path.stem.removeprefix(_OVERLAY) for path in (root / "configs").glob(f"{_OVERLAY}*.json")} | {OWN}
    paper = list(METHOD_NAMES)
    return sorted(names, key=lambda name: (name == OWN, paper.index(name) if name in paper else len(paper), name))


def find_methods(
    bundles: Path, weights: Path, *, wanted: Sequence[str] | None = None
) -> tuple[list[Method], dict[str, str]]:
    """The methods that have weights.

    Args:
        bundles: folder of the bundles.
        weights: folder with `NAME.pt` and `NAME.json` of the methods but the product's.
        wanted: names; all when None.

    Returns:
        The methods in the table's order, and why each other one is left out.

    Raises:
        InputError: when a wanted method is unknown or has no usable weights.
    """
    known = known_methods(bundles)
    if unknown := sorted(set(wanted or ()) - set(known)):
        raise InputError(f"--methods: {unknown} are unknown; {bundles} has configs for {known}.")
    found, missing = [], {}
    for name in (name for name in known if wanted is None or name in wanted):
        try:
            found.append(_method(name, bundles, weights))
        except InputError as error:
            if wanted is not None:
                raise
            missing[name] = str(error).replace(f"{weights}/", "").replace(f"{bundles}/", "")
    return found, missing


def open_detector(method: Method) -> CandidateDetector:
    """Builds a method's detector (contract C6.5).

    Raises:
        InputError: when the bundle cannot build it, or it states no operating point.
    """
    detector = open_bundle(
        method.bundles, _BUNDLE, component="detector", configs=method.configs, weights=method.weights
    )
    point = getattr(detector, "operating_point", None)
    if not isinstance(point, int | float) or not 0 <= point <= 1:
        raise InputError(
            f"{method.name}: its detector needs an `operating_point` in [0, 1], the probability from which a candidate "
            f"counts as found, got {point!r}. Set it in {method.configs[-1]}."
        )
    return detector


def relation_to(part: Subset, sidecar: Mapping[str, Any]) -> Relation:
    """Whether weights may have been trained on the patients of a part.

    The same split: they were held out. Other collections: they are other patients, as far as collections share none.
    Another split of the same collections, or nothing known: they may have been trained on.
    """
    if sidecar.get("split_hash") and sidecar["split_hash"] == part.split_hash:
        return "held_out"
    trained = {str(source.get("name")) for source in sidecar.get("data", [])}
    judged = {nodule.source for nodule in part.nodules} | {series.source for series in part.series}
    return "other_collections" if trained and judged and not trained & judged else "may_have_trained"


def count_parameters(path: Path) -> int:
    """Trained numbers of a state dict; running statistics are not trained.

    Raises:
        InputError: when the file is damaged.
    """
    return sum(_trained(path))


def check_relations(relations: Mapping[str, Relation | None], *, required: bool) -> None:
    """Warns of methods that may know the judged patients, or refuses them.

    Args:
        relations: by method.
        required: refuse.

    Raises:
        InputError: when it is required that none may.
    """
    doubtful = [name for name, relation in relations.items() if relation == "may_have_trained"]
    if not doubtful:
        return
    message = (
        f"{', '.join(doubtful)}: the weights' split is not this cohort's, and a collection that is judged here "
        "trained them, or nobody knows, so that they may know the judged patients."
    )
    if required:
        raise InputError(f"{message} Train them on this cohort, or leave out --require-held-out.")
    _logger.warning("%s The figures hold only if you know that they do not.", message)


def _method(name: str, bundles: Path, folder: Path) -> Method:
    weights: str | Path = "model.pt" if name == OWN else folder / f"{name}.pt"
    read = read_weights_file(weights) if isinstance(weights, Path) else read_weights(bundles, _BUNDLE, file=weights)
    return Method(
        name=name,
        bundles=bundles,
        weights=weights,
        sha256=read.sha256,
        sidecar=read.sidecar,
        parameters=count_parameters(read.path),
    )


def _trained(path: Path) -> Iterator[int]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise what they like on a damaged file
        raise InputError(f"{path}: not a weights file ({str(error).splitlines()[0]}). Copy it again.") from error
    for key, value in state.items():
        if not key.endswith(_STATISTICS):
            yield value.numel()
