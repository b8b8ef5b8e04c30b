"""Who stands in the table: the trivial baselines first, then the methods, each run on all images once.

The records of each are kept in `OUT/.parts`, so that an evaluation that was stopped goes on with the next method.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.cohort_subsets import Subset
from evaluation.composites import Composites, evaluate_composites
from evaluation.methods import Method, Relation, open_detector, relation_to
from evaluation.metrics.matching import CandidateDetector
from evaluation.segmentation.baselines import MiddleGuess, NothingFound, ThresholdDetector
from evaluation.segmentation.crops import Crop, evaluate_crops
from evaluation.segmentation.records import SegmentationResult, load_result, save_result
from evaluation.segmentation.scans import evaluate_scans
from lungsynth.bundles import bundle_root, resolved_config
from lungsynth.errors import InputError

__all__ = ["EvaluatedMethod", "Images", "baselines", "evaluated_method", "run_method"]

_logger = logging.getLogger(__name__)
_WARM_UP = (1, 64, 64)


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluatedMethod:
    """A line of the table.

    Args:
        name: in files and JSON.
        title: in Markdown.
        open: builds the detector.
        identity: changes with whatever the detector depends on.
        parameters: trained numbers.
        train_minutes: None where not known.
        relation: of its training to the judged patients; None for what is not trained.
        chosen_point: the operating point that its sidecar states; None for what is not trained, or states none.
    """

    name: str
    title: str
    open: Callable[[], CandidateDetector]
    identity: str
    parameters: int
    train_minutes: float | None = None
    relation: Relation | None = None
    chosen_point: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Images:
    """All that a method is judged on, and what could not be read of it."""

    part: Subset
    crops: Sequence[Crop]
    composites: Composites
    problems: tuple[str, ...]
    identity: str


def baselines() -> list[EvaluatedMethod]:
    """Nothing found, a threshold, and a guess."""
    return [
        EvaluatedMethod(name="nothing", title="nothing found", open=NothingFound, identity="1", parameters=0),
        EvaluatedMethod(name="threshold", title="HU threshold", open=ThresholdDetector, identity="2", parameters=0),
        EvaluatedMethod(name="middle", title="middle of the image", open=MiddleGuess, identity="1", parameters=0),
    ]


def evaluated_method(method: Method, part: Subset) -> EvaluatedMethod:
    """A method with weights as a line of the table."""
    config = resolved_config(method.bundles, "lung_seg", configs=method.configs)
    code = [_code_digest(folder) for folder in (bundle_root(method.bundles, "lung_seg"), Path(__file__).parent)]
    known = json.dumps([config, method.sha256, code], sort_keys=True, default=str)
    return EvaluatedMethod(
        name=method.name,
        title=method.title,
        open=lambda: open_detector(method),
        identity=hashlib.sha256(known.encode()).hexdigest(),
        parameters=method.parameters,
        train_minutes=method.train_minutes,
        relation=relation_to(part, method.sidecar),
        chosen_point=method.sidecar.get("operating_point"),
    )


def _code_digest(folder: Path) -> str:
    """Of all Python files below a folder: records of other code are not taken for this one's."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run_method(contestant: EvaluatedMethod, images: Images, folder: Path) -> SegmentationResult:
    """The records of a method on all images, from `folder` where they are kept already.

    Raises:
        InputError: naming the method, when its detector fails.
    """
    path, identity = folder / f"{contestant.name}.json", f"{images.identity}:{contestant.identity}"
    kept = load_result(path, identity=identity)
    if kept is not None:
        _logger.info("%s: taken from %s", contestant.name, path)
        return kept
    try:
        outcome = _judge(contestant, images)
    except Exception as error:  # one method that fails, for whatever reason, must not take the others with it
        raise InputError(f"{contestant.name}: failed ({type(error).__name__}: {error})") from error
    save_result(path, outcome, identity=identity)
    return outcome


def _judge(contestant: EvaluatedMethod, images: Images) -> SegmentationResult:
    detector, problems, name = contestant.open(), list[str](), contestant.name
    detector(np.full(_WARM_UP, -850, np.int16), (1.0, 0.7, 0.7))  # what is built on the first call is not timed
    return SegmentationResult(
        operating_point=float(getattr(detector, "operating_point", 0.5)),
        crops=evaluate_crops(images.crops, detector, name=name),
        composites=evaluate_composites(images.composites, detector, name=name),
        scans=evaluate_scans(images.part, detector, name=name, problems=problems),
        problems=tuple(problems),
    )
