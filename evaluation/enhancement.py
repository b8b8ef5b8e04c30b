"""What the enhancer does to labels, on composites of lungs and nodules of patients that no stage was trained on.

Each composite is looked at whole by the segmentation bundle: as composed, enhanced without the gate, and with it. Kept,
lost and invented are relative to what was found in the composite. Intervals are exact binomial ones (Clopper and
Pearson): events are rare, and one whole patient drawn again has none of them; composites count as independent.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from evaluation.cohort_subsets import Split, open_subset
from evaluation.composites import Composites
from lungsynth.bundles import open_bundle
from lungsynth.compositing.overlay import LungBackground
from lungsynth.compositing.render import Rendered, Renderer
from lungsynth.enhancement.changes import Changes
from lungsynth.enhancement.identity import enhancement_identity
from lungsynth.enhancement.label_check import LABEL_CHECK_MARGIN, LABEL_CHECK_TOLERANCE, LabelCheck, LabelComparison
from lungsynth.enhancement.stage import EnhancementStage, open_stage
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_bytes, write_json
from lungsynth.placement.catalogue import Recipe
from lungsynth.types import HuPlane

__all__ = ["EnhancementSettings", "evaluate_enhancement", "share_with_interval"]

_PART_SIZE = 25  # composites between two records on disk
_LEVEL = 0.95
WAYS = ("ungated", "gated")


@dataclass(frozen=True, kw_only=True)
class EnhancementSettings:
    """The command line of `scripts/evaluate.py enhancement`.

    Args:
        cohort: folder written by `scripts/prepare.py`.
        out: folder of the results; one left unfinished goes on.
        bundles: folder of the three bundles.
        part: which patients lend nodules and lungs.
        seed: of the composites.
        composites: how many to make.
    """

    cohort: Path
    out: Path
    bundles: Path
    part: Split = "test"
    seed: int = 0
    composites: int = 1000


@dataclass(frozen=True)
class _Tools:
    plain: EnhancementStage
    gated: EnhancementStage
    gate: LabelCheck
    renderer: Renderer


def evaluate_enhancement(settings: EnhancementSettings) -> dict[str, Any]:
    """Judges the enhancer and writes `enhancement.json` (contract C13.4).

    Raises:
        InputError: when the cohort has no nodules or normal slices in that part, or `out` holds another evaluation.
    """
    part = open_subset(settings.cohort, settings.part)
    identity = _identity(settings, part.identity)
    _claim(settings.out, identity)
    problems: list[str] = []
    with Composites(part, count=settings.composites, seed=settings.seed, problems=problems) as composites:
        if not len(composites):
            raise InputError(
                f"{settings.cohort}: its {settings.part} part gives no composite: it needs nodules and normal slices. "
                "Prepare the cohort with more patients, or give another --part."
            )
        records = _records(settings, composites)
    result = {**identity, **_figures(records), "problems": problems}
    write_json(settings.out / "enhancement.json", result, indent=2)
    return result


def share_with_interval(events: int, n: int) -> dict[str, float | int | None]:
    """A share with its exact 95 % interval (Clopper and Pearson, 1934); None for all of them when n is 0."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "events": events, "n": n}
    tail = (1 - _LEVEL) / 2
    low = float(stats.beta.ppf(tail, events, n - events + 1)) if events else 0.0
    high = float(stats.beta.ppf(1 - tail, events + 1, n - events)) if events < n else 1.0
    return {"value": events / n, "low": low, "high": high, "events": events, "n": n}


def _identity(settings: EnhancementSettings, part: str) -> dict[str, Any]:
    last = enhancement_identity(settings.bundles, label_check=True)
    return {
        "part": settings.part,
        "cohort": part,
        "seed": settings.seed,
        "wanted": settings.composites,
        "weights": {"cyclegan": last["enhancer"], "lung_seg": last["label_check"]},
        "settings": {"enhancer": last["enhancer_settings"], "gate": last["label_check_settings"]},
        "gate": {"margin": LABEL_CHECK_MARGIN, "tolerance": LABEL_CHECK_TOLERANCE},
    }


def _claim(out: Path, identity: dict[str, Any]) -> None:
    path = out / ".parts" / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != identity:
        raise InputError(
            f"{out}: holds another evaluation. Repeat its settings to go on with it, or give another --out."
        )
    write_bytes(path, json.dumps(identity).encode())


def _records(settings: EnhancementSettings, composites: Composites) -> list[dict[str, Any]]:
    """One for each `_PART_SIZE` composites, from disk where it stands there."""
    tools: _Tools | None = None
    records = []
    for begin in tqdm(range(0, len(composites), _PART_SIZE), desc="composites", unit=f"{_PART_SIZE} slices"):
        path = settings.out / ".parts" / f"{begin:06}.json"
        if not path.is_file():
            tools = tools or _open(settings.bundles, composites)
            indices = range(begin, min(begin + _PART_SIZE, len(composites)))
            rows = [_judge(*composites.recipe(index), tools) for index in indices]
            record = {
                "rows": [row for row, _ in rows],
                "changes": Changes.total(changes for _, changes in rows).counts.tolist(),
            }
            write_bytes(path, json.dumps(record).encode())
        records.append(json.loads(path.read_text()))
    return records


def _open(bundles: Path, composites: Composites) -> _Tools:
    return _Tools(
        plain=open_stage(bundles, label_check=False),
        gated=open_stage(bundles, label_check=True),
        gate=LabelCheck(open_bundle(bundles, "lung_seg", component="detector")),
        renderer=Renderer(composites.library),
    )


def _judge(recipe: Recipe, nodule: Any, patient: str, tools: _Tools) -> tuple[dict[str, Any], Changes]:
    sample, background = tools.renderer.render(recipe), tools.renderer.background(recipe)
    plain, _ = tools.plain(sample, recipe.lung, background)
    gated, outcome = tools.gated(sample, recipe.lung, background)
    ungated = _compared(tools.gate, sample, plain, background)
    same = np.array_equal(plain, gated)
    row = {
        "lung_patient": patient,
        "nodule_patient": nodule.patient,
        "diameter_mm": nodule.diameter_mm,
        "category": nodule.category,
        "verdict": outcome.verdict,
        "found": ungated.n_found,
        "ungated": _counts(ungated),
        "gated": _counts(ungated if same else _compared(tools.gate, sample, gated, background)),
    }
    return row, outcome.changes


def _compared(gate: LabelCheck, sample: Rendered, image: HuPlane, background: LungBackground) -> LabelComparison:
    before, after = (gate.detect(plane, background.spacing_mm) for plane in (sample.image, image))
    return gate.compare(before, after, sample, background.spacing_mm)


def _counts(comparison: LabelComparison) -> dict[str, int]:
    return {"lost": comparison.n_lost, "invented": comparison.n_invented}


def _figures(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rows = [row for record in records for row in record["rows"]]
    changes = Changes.total(Changes(np.array(record["changes"])) for record in records)
    found = sum(row["found"] for row in rows)
    verdicts = {name: sum(row["verdict"] == name for row in rows) for name in ("kept", "blended", "refused")}
    return {
        "composites": len(rows),
        "lung_patients": len({row["lung_patient"] for row in rows}),
        "nodule_patients": len({row["nodule_patient"] for row in rows}),
        "nodules_found": found,
        **{way: _shares(rows, way, found) for way in WAYS},
        "verdicts": verdicts,
        "changes": changes.figures(),
    }


def _shares(rows: Sequence[dict[str, Any]], way: str, found: int) -> dict[str, Any]:
    lost = sum(row[way]["lost"] for row in rows)
    inventive = sum(row[way]["invented"] > 0 for row in rows)
    return {
        "labels_kept": share_with_interval(found - lost, found),
        "slices_with_invented": share_with_interval(inventive, len(rows)),
        "nodules_lost": lost,
        "nodules_invented": sum(row[way]["invented"] for row in rows),
    }
