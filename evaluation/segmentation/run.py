"""Table I: every method of lung_seg_bundle that has weights, on the patients of a cohort's test part.

Files of OUT: `table_1.md`, `table_1.json`, `froc.png`, `errors/`, and `.parts/` with the records of each method.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from evaluation.cohort_subsets import Split, Subset, open_subset
from evaluation.composites import Composites
from evaluation.methods import OWN, check_relations, find_methods
from evaluation.metrics.froc import Froc
from evaluation.segmentation.crops import one_reader_ceiling, read_crops
from evaluation.segmentation.evaluate import EvaluatedMethod, Images, baselines, evaluated_method, run_method
from evaluation.segmentation.figures import measure
from evaluation.segmentation.gallery import write_gallery
from evaluation.segmentation.pictures import save_froc
from evaluation.segmentation.records import SegmentationResult
from evaluation.segmentation.table import Entry, table_1_json, table_1_markdown
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json, write_text
from lungsynth.tracking import DEFAULT_URI, Run, open_tracker

__all__ = ["SegmentationEvaluation", "SegmentationSettings", "evaluate_segmentation"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """What is judged, and where.

    Args:
        cohort: folder written by scripts/prepare.py.
        out: folder of the tables; made when absent.
        bundles: folder of the bundles.
        weights: folder with the weights of the methods but the product's.
        methods: names; all that have weights when None.
        part: `test`, or `validation` to choose an operating point.
        composites: whole slices to make.
        seed: of the composites and the bootstrap.
        require_held_out: refuse methods that may have been trained on the judged patients.

    Raises:
        InputError: on a negative number.
    """

    cohort: Path
    out: Path
    bundles: Path
    weights: Path
    methods: tuple[str, ...] | None = None
    part: Split = "test"
    composites: int = 200
    seed: int = 0
    require_held_out: bool = False

    def __post_init__(self) -> None:
        if self.composites < 0 or self.seed < 0:
            raise InputError(f"--composites and --seed must not be negative, got {self.composites} and {self.seed}.")


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluation:
    """What came of it: the table as Markdown and as JSON, what could not be read, and where it was tracked."""

    out: Path
    markdown: str
    table: Mapping[str, object]
    problems: tuple[str, ...]
    tracking_uri: str


def evaluate_segmentation(settings: SegmentationSettings, *, tracking_uri: str = DEFAULT_URI) -> SegmentationEvaluation:
    """Evaluates, and writes Table I.

    Raises:
        InputError: when the cohort, a wanted method or the tracking store cannot be used.
    """
    part = open_subset(settings.cohort, settings.part)
    methods, left_out = find_methods(settings.bundles, settings.weights, wanted=settings.methods)
    contestants = [*baselines(), *(evaluated_method(method, part) for method in methods)]
    check_relations({each.name: each.relation for each in contestants}, required=settings.require_held_out)
    tracker = open_tracker(tracking_uri)
    with (
        tracker.run(f"segmentation-{part.part}", tags={"judge": "segmentation"}) as run,
        _images(settings, part) as images,
    ):
        outcomes, failed = _run_all(contestants, images, settings)
        entries = [
            Entry(contestant=contestant, outcome=outcome, figures=measure(outcome, seed=settings.seed))
            for contestant in contestants
            if (outcome := outcomes.get(contestant.name))
        ]
        ceiling = measure(SegmentationResult(crops=one_reader_ceiling(images.crops)), seed=settings.seed)
        absent, problems = {**left_out, **failed}, _problems(images, entries)
        table = table_1_json(part, entries, ceiling, left_out=absent, problems=problems)
        markdown = table_1_markdown(part, entries, ceiling, left_out=absent)
        _write(settings.out, table, markdown, entries)
        pictures = write_gallery(settings.out / "errors", _shown(entries), images)
        _track(run, settings, table, entries, pictures)
    return SegmentationEvaluation(
        out=settings.out, markdown=markdown, table=table, problems=problems, tracking_uri=tracker.uri
    )


@contextmanager
def _images(settings: SegmentationSettings, part: Subset) -> Iterator[Images]:
    problems: list[str] = []
    crops = read_crops(part, problems)
    with Composites(part, count=settings.composites, seed=settings.seed, problems=problems) as composites:
        yield Images(
            part=part,
            crops=crops,
            composites=composites,
            problems=tuple(problems),
            identity=f"{part.identity}:{settings.composites}:{settings.seed}",
        )


def _run_all(
    contestants: Sequence[EvaluatedMethod], images: Images, settings: SegmentationSettings
) -> tuple[dict[str, SegmentationResult], dict[str, str]]:
    """The records of each method, and why others have none."""
    outcomes, failed = {}, {}
    for contestant in tqdm(contestants, desc="methods", unit="method"):
        try:
            outcomes[contestant.name] = run_method(contestant, images, settings.out / ".parts")
        except InputError as error:
            if contestant.name in (settings.methods or ()):
                raise
            failed[contestant.name] = str(error)
    for name, reason in failed.items():
        _logger.warning("%s is left out: %s", name, reason)
    return outcomes, failed


def _problems(images: Images, entries: Sequence[Entry]) -> tuple[str, ...]:
    """What could not be read, once each, with paths from the cohort on."""
    found = [*images.problems, *(problem for entry in entries for problem in entry.outcome.problems)]
    return tuple(dict.fromkeys(problem.replace(f"{images.part.folder}/", "") for problem in found))


def _write(out: Path, table: Mapping[str, object], markdown: str, entries: Sequence[Entry]) -> None:
    write_json(out / "table_1.json", table)
    write_text(out / "table_1.md", markdown)
    kinds = {
        "composites": {entry.contestant.title: entry.outcome.composites for entry in entries},
        "scans": {entry.contestant.title: entry.outcome.scans.cases for entry in entries},
    }
    panels = {}
    for kind, found in kinds.items():
        cases = next(iter(found.values()), ())
        if lesions := sum(len(case.targets) for case in cases):
            title = f"{lesions} lesions on {len(cases)} {kind}"
            panels[title] = {name: Froc(own).curve() for name, own in found.items()}
    save_froc(panels, out / "froc.png")


def _shown(entries: Sequence[Entry]) -> Entry | None:
    """Whose errors are shown: the product's, else those of the last method."""
    trained = [entry for entry in entries if entry.contestant.relation]
    return next((entry for entry in trained if entry.contestant.name == OWN), trained[-1] if trained else None)


def _track(
    run: Run,
    settings: SegmentationSettings,
    table: Mapping[str, object],
    entries: Sequence[Entry],
    pictures: Sequence[Path],
) -> None:
    """Logs settings, figures, tables and pictures; no id of a patient or file."""
    run.log_params({"part": settings.part, "split_hash": table["split_hash"], "seed": settings.seed})
    run.log_metrics(
        {
            f"{entry.contestant.name}/{name}": figure.value
            for entry in entries
            for name, figure in entry.figures.headline.items()
            if figure.value is not None
        }
    )
    run.log_json({key: value for key, value in table.items() if key != "problems"}, "table_1.json")
    for file in (settings.out / "table_1.md", settings.out / "froc.png"):
        run.log_file(file)
    for picture in pictures:
        run.log_file(picture, "errors")
