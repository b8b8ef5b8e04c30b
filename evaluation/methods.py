"""The methods that tables compare: which there are, where their weights are, and whom they were trained on.

A bundle as it is gives one method; each `configs/inference_NAME.json` laid over it gives another, with weights
`NAME.pt` and their sidecar in a folder of their own. What kinds of methods there are stands with their tables
(`segmentation.detectors`, `generation.methods`).
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from evaluation.cohort_subsets import Subset
from lungsynth.bundles import WeightsInfo, bundle_root, read_weights_file
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_bytes, write_json

__all__ = [
    "OVERLAY",
    "Method",
    "Relation",
    "check_relations",
    "code_digest",
    "configured_methods",
    "count_parameters",
    "digest_of",
    "relation_to",
    "store_weights",
    "train_minutes",
    "usable_methods",
]

_logger = logging.getLogger(__name__)

OVERLAY = "inference_"  # how the config of a method begins
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # measured, not trained
_HALF_FROM_BYTES = 3_000_000  # weights files from here on are kept in half precision, so that a repository stays small

Relation = Literal["held_out", "other_collections", "may_have_trained"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """A row of a table.

    Args:
        name: in files and JSON.
        title: in Markdown.
        open: builds what is evaluated: a detector, or what answers requests for samples.
        identity: changes with whatever its results depend on.
        parameters: trained numbers; None for what is not trained.
        train_minutes: None where unknown.
        relation: of its training to the evaluated patients; None for what is not trained.
        stated_operating_point: what its sidecar states; None for what is not trained, or states none.
    """

    name: str
    title: str
    open: Callable[[], Any]
    identity: str
    parameters: int | None = None
    train_minutes: float | None = None
    relation: Relation | None = None
    stated_operating_point: float | None = None


def configured_methods(
    bundles: Path, bundle: str, *, own: str, titles: Mapping[str, str], excluded: Collection[str] = ()
) -> list[str]:
    """Names of all methods that a bundle has configs for, in the paper's order, the product's own last.

    Args:
        bundles: folder of the bundles.
        bundle: its name.
        own: name of the bundle as it is.
        titles: by name, in the paper's order.
        excluded: overlays that are no methods.
    """
    configs = (bundle_root(bundles, bundle) / "configs").glob(f"{OVERLAY}*.json")
    names = ({path.stem.removeprefix(OVERLAY) for path in configs} - set(excluded)) | {own}
    order = list(titles)
    return sorted(names, key=lambda name: (name == own, order.index(name) if name in order else len(order), name))


def usable_methods(
    names: Sequence[str],
    find: Callable[[str], Method],
    *,
    requested: Sequence[str] | None,
    folders: Sequence[Path],
) -> tuple[list[Method], dict[str, str]]:
    """The methods that have weights.

    Args:
        names: of all that there are.
        find: gives a method, or raises an InputError.
        requested: names; all when None.
        folders: are left out of the reasons.

    Returns:
        The methods, and why each other one is left out.

    Raises:
        InputError: when a requested method is unknown or has no usable weights.
    """
    if unknown := sorted(set(requested or ()) - set(names)):
        raise InputError(f"`methods`: {unknown} are unknown; there are configs for {list(names)}.")
    methods: list[Method] = []
    reasons: dict[str, str] = {}
    for name in (name for name in names if requested is None or name in requested):
        try:
            methods.append(find(name))
        except InputError as error:
            if requested is not None:
                raise
            reasons[name] = str(error)
            for folder in folders:
                reasons[name] = reasons[name].replace(f"{folder}/", "")
    return methods, reasons


def relation_to(subset: Subset, sidecar: Mapping[str, Any]) -> Relation:
    """Whether weights may have been trained on the patients of a subset.

    The same split: they were held out. Other collections: they are other patients, as far as collections share none.
    Another split of the same collections, or nothing known: they may have been trained on.
    """
    if sidecar.get("split_hash") and sidecar["split_hash"] == subset.split_hash:
        return "held_out"
    trained, evaluated = {str(source.get("name")) for source in sidecar.get("data", [])}, set(subset.own_collections)
    return "other_collections" if trained and evaluated and not trained & evaluated else "may_have_trained"


def check_relations(methods: Sequence[Method], *, required: bool) -> None:
    """Warns of methods that may have been trained on the evaluated patients, or refuses them.

    Args:
        methods: of a table.
        required: refuse.

    Raises:
        InputError: when it is required that there is none.
    """
    doubtful = [method.name for method in methods if method.relation == "may_have_trained"]
    if not doubtful:
        return
    message = (
        f"{', '.join(doubtful)}: the weights' split is not this cohort's, and a collection that is evaluated here "
        "trained them, or nothing is known, so that they may have been trained on the evaluated patients."
    )
    if required:
        raise InputError(f"{message} Train them on this cohort, or leave out `require_held_out`.")
    _logger.warning("%s The figures hold only if you know that they were not.", message)


def train_minutes(sidecar: Mapping[str, Any]) -> float | None:
    """What a training took, where the sidecar says so."""
    minutes = sidecar.get("train_minutes")
    return float(minutes) if isinstance(minutes, int | float) else None


def count_parameters(weights: WeightsInfo | Path) -> int:
    """Trained numbers of a state dict; running statistics are not trained.

    Raises:
        InputError: when the file is damaged.
    """
    return sum(_trained_sizes(weights if isinstance(weights, Path) else weights.path))


def code_digest(*folders: Path) -> str:
    """SHA-256 of all Python files of some folders: records that other code made are not reused."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def store_weights(weights: Path, to: Path) -> int:
    """Copies a state dict and its sidecar; from 3 MB on in half precision, which the sidecar then says (`stored`).

    Networks load them as they are: numbers are copied into the float32 ones of the network. Counters stay integers.

    Args:
        weights: the file, with its sidecar beside it.
        to: the file to write; its sidecar is written first.

    Returns:
        Bytes of the file.

    Raises:
        InputError: when the file is missing or is not the one that its sidecar describes.
    """
    sidecar, content = dict(read_weights_file(weights).sidecar), weights.read_bytes()
    if len(content) >= _HALF_FROM_BYTES:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        buffer = io.BytesIO()
        torch.save({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, buffer)
        content = buffer.getvalue()
        sidecar |= {"sha256": hashlib.sha256(content).hexdigest(), "stored": "half precision"}
    write_json(to.with_suffix(".json"), sidecar, indent=2)
    write_bytes(to, content)
    return len(content)


def digest_of(facts: object) -> str:
    """SHA-256 of what JSON can hold; other values count as their text."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _trained_sizes(path: Path) -> Iterator[int]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise what they like on a damaged file
        raise InputError(f"{path}: not a weights file ({str(error).splitlines()[0]}). Copy it again.") from error
    for key, value in state.items():
        if not key.endswith(_STATISTICS):
            yield value.numel()
