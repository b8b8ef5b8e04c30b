"""What the enhancer does to labels, on composites of lungs and nodules of patients that trained no network.

The segmentation bundle looks at each whole slice: as composed, enhanced without the label check, and with it. Kept,
lost and invented nodules are relative to those found in the composite. Intervals are exact binomial ones (Clopper and
Pearson): events are rare, and one whole patient drawn again has none of them; composites count as independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from evaluation.cohort_subsets import EvaluationSplit, Subset, open_subset
from evaluation.composites import Composites
from evaluation.methods import digest_of
from evaluation.runner import FORMAT, EvaluationResult, RecordStore, records_folder
from evaluation.tables import markdown_table
from lungsynth.bundles import open_bundle
from lungsynth.cohort.schema import NoduleRow
from lungsynth.compositing.overlay import LungBackground
from lungsynth.compositing.render import Rendered, Renderer
from lungsynth.enhancement.label_check import LABEL_CHECK_MARGIN, LABEL_CHECK_TOLERANCE, LabelCheck, LabelComparison
from lungsynth.enhancement.stage import Changes, EnhancementStage, enhancement_identity, open_stage
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json, write_text
from lungsynth.placement.catalogue import Recipe
from lungsynth.run_folder import RunFolder
from lungsynth.types import HuPlane

__all__ = ["EnhancementEvaluationConfig", "evaluate_enhancement", "share_with_interval"]

_CHUNK = 25  # composites between two records on disk: what a stop costs at most
_LEVEL = 0.95  # of the intervals
_VERDICTS = ("kept", "blended", "refused")
_WAYS = {"unchecked": "without the label check", "checked": "with the label check"}
_SHARES = {"labels_kept": "nodules kept", "slices_with_invented": "slices with an invented nodule"}


@dataclass(frozen=True, kw_only=True)
class EnhancementEvaluationConfig:
    """An evaluation of the enhancer.

    Args:
        cohort: folder written by `lungsynth prepare`.
        out: folder of the results; one left unfinished goes on.
        bundles: folder of the three bundles.
        split: whose nodules and lungs.
        seed: of the composites.
        composites: how many to make.
    """

    cohort: Path
    out: Path
    bundles: Path
    split: EvaluationSplit = "test"
    seed: int = 0
    composites: int = 1000


class _Networks:
    """The enhancer without and with the label check, and the check by itself, on the composites of a library."""

    def __init__(self, bundles: Path, composites: Composites) -> None:
        self._composites, self._renderer = composites, Renderer(composites.library)
        self._unchecked: EnhancementStage = open_stage(bundles, label_check=False)
        self._checked: EnhancementStage = open_stage(bundles, label_check=True)
        self._check = LabelCheck(open_bundle(bundles, "lung_seg", component="detector"))

    def evaluate(self, index: int) -> tuple[dict[str, Any], Changes]:
        """The row of a composite, and the changes of HU in it."""
        recipe, nodule, patient = self._composites.recipe(index)
        sample, background = self._renderer.render(recipe), self._renderer.background(recipe)
        unchecked, _ = self._unchecked(sample, recipe.lung, background)
        checked, enhanced = self._checked(sample, recipe.lung, background)
        comparison = self._compare(sample, unchecked, background)
        same = np.array_equal(unchecked, checked)
        row = {
            **_owners(recipe, nodule, patient),
            "verdict": enhanced.verdict,
            "found": comparison.n_found,
            "unchecked": _counts(comparison),
            "checked": _counts(comparison if same else self._compare(sample, checked, background)),
        }
        return row, enhanced.changes

    def _compare(self, sample: Rendered, image: HuPlane, background: LungBackground) -> LabelComparison:
        before, after = (self._check.detect(plane, background.spacing_mm) for plane in (sample.image, image))
        return self._check.compare(before, after, sample, background.spacing_mm)


def evaluate_enhancement(config: EnhancementEvaluationConfig) -> EvaluationResult:
    """Evaluates the enhancer and writes `enhancement.json` and `enhancement.md`.

    Raises:
        InputError: when the cohort has no nodules or normal slices in that split, or `out` holds another evaluation.
    """
    subset = open_subset(config.cohort, config.split)
    identity = _identity(config, subset.identity)
    with RunFolder(path=records_folder(config.out), identity=identity, file="settings.json").held():
        return _evaluate(config, subset, identity)


def _evaluate(config: EnhancementEvaluationConfig, subset: Subset, identity: dict[str, Any]) -> EvaluationResult:
    problems: list[str] = []
    with Composites(subset, count=config.composites, seed=config.seed, problems=problems) as composites:
        if not len(composites):
            raise InputError(
                f"{config.cohort}: its {config.split} split gives no composite: it needs nodules and normal slices. "
                "Prepare the cohort with more patients, or give another `split`."
            )
        records = _records(config, composites, digest_of(identity))
    table = {"format": FORMAT, **identity, **_figures(records), "problems": problems}
    markdown = _markdown(table)
    write_json(config.out / "enhancement.json", table, indent=2)
    write_text(config.out / "enhancement.md", markdown)
    return EvaluationResult(
        out=config.out, name="enhancement", table=table, markdown=markdown, problems=tuple(problems)
    )


def share_with_interval(events: int, n: int) -> dict[str, float | int | None]:
    """A share with its exact 95 % interval (Clopper and Pearson, 1934); None for all of them when n is 0."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "events": events, "n": n}
    tail = (1 - _LEVEL) / 2
    low = float(stats.beta.ppf(tail, events, n - events + 1)) if events else 0.0
    high = float(stats.beta.ppf(1 - tail, events + 1, n - events)) if events < n else 1.0
    return {"value": events / n, "low": low, "high": high, "events": events, "n": n}


def _identity(config: EnhancementEvaluationConfig, subset: str) -> dict[str, Any]:
    stage = enhancement_identity(config.bundles, label_check=True)
    return {
        "split": config.split,
        "cohort": subset,
        "seed": config.seed,
        "requested": config.composites,
        "stage": stage,
        "label_check": {"margin": LABEL_CHECK_MARGIN, "tolerance": LABEL_CHECK_TOLERANCE},
    }


def _records(config: EnhancementEvaluationConfig, composites: Composites, identity: str) -> list[Mapping[str, Any]]:
    """One for each `_CHUNK` composites, kept or made."""
    store: RecordStore[Mapping[str, Any]] = RecordStore(folder=records_folder(config.out), to_json=dict, from_json=dict)
    networks: list[_Networks] = []  # opened when the first record is missing

    def make(begin: int) -> Mapping[str, Any]:
        if not networks:
            networks.append(_Networks(config.bundles, composites))
        indices = range(begin, min(begin + _CHUNK, len(composites)))
        rows, changes = zip(*(networks[0].evaluate(index) for index in indices), strict=True)
        return {"rows": list(rows), "changes": Changes.total(changes).counts.tolist()}

    chunks = tqdm(range(0, len(composites), _CHUNK), desc="composites", unit=f"{_CHUNK} slices")
    return [store.get(f"{begin:06}", lambda begin=begin: make(begin), identity=identity) for begin in chunks]  # type: ignore[misc]


def _owners(recipe: Recipe, nodule: NoduleRow, patient: str) -> dict[str, Any]:
    return {
        "lung_patient": patient,
        "nodule_patient": nodule.patient_id,
        "diameter_mm": nodule.diameter_mm,
        "category": nodule.texture_class,
    }


def _counts(comparison: LabelComparison) -> dict[str, int]:
    return {"lost": comparison.n_lost, "invented": comparison.n_invented}


def _figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [row for record in records for row in record["rows"]]
    changes = Changes.total(Changes(np.array(record["changes"])) for record in records)
    found = sum(row["found"] for row in rows)
    return {
        "composites": len(rows),
        "lung_patients": len({row["lung_patient"] for row in rows}),
        "nodule_patients": len({row["nodule_patient"] for row in rows}),
        "nodules_found": found,
        **{way: _way_figures(rows, way, found) for way in _WAYS},
        "verdicts": {name: sum(row["verdict"] == name for row in rows) for name in _VERDICTS},
        "changes": changes.figures(),
    }


def _way_figures(rows: Sequence[Mapping[str, Any]], way: str, found: int) -> dict[str, Any]:
    lost = sum(row[way]["lost"] for row in rows)
    return {
        "labels_kept": share_with_interval(found - lost, found),
        "slices_with_invented": share_with_interval(sum(row[way]["invented"] > 0 for row in rows), len(rows)),
        "nodules_lost": lost,
        "nodules_invented": sum(row[way]["invented"] for row in rows),
    }


def _markdown(table: Mapping[str, Any]) -> str:
    shares = [[title, *(_share_text(table[way][name]) for way in _WAYS)] for name, title in _SHARES.items()]
    changes = [[name, "none" if value is None else f"{value:.2f}"] for name, value in table["changes"].items()]
    return (
        f"# Enhancement\n\n{table['composites']} composites, in which {table['nodules_found']} nodules are found.\n\n"
        + markdown_table(["share", *_WAYS.values()], shares)
        + "\n"
        + markdown_table(["change", "HU"], changes)
    )


def _share_text(share: Mapping[str, Any]) -> str:
    if not share["n"]:
        return "-"
    return f"{share['value']:.2%} ({share['low']:.2%}-{share['high']:.2%}), n = {share['n']}"
