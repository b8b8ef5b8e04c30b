"""What `make tour` must have made; it runs last in scripts/tour.sh, on the folder that LUNGSYNTH_TOUR names."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lungsynth.ct.write import read_plane
from lungsynth.geometry import lps_to_voxel
from lungsynth.hounsfield import Label
from lungsynth.placement.catalogue import read_catalogue
from lungsynth.tracking import open_tracker

ROOT = Path(__file__).resolve().parent.parent
TOUR = Path(os.environ.get("LUNGSYNTH_TOUR", ""))

pytestmark = pytest.mark.skipif("LUNGSYNTH_TOUR" not in os.environ, reason="made by scripts/tour.sh")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_label_lies_on_its_nodule():
    out = TOUR / "synthetic"
    annotations = pd.read_csv(out / "annotations.csv")
    assert set(annotations["seriesuid"]) == {recipe.id for recipe in read_catalogue(out / "catalogue.parquet")}
    for row in annotations.itertuples():
        image, affine = read_plane(out / "images" / f"{row.seriesuid}.nii.gz")
        mask, _ = read_plane(out / "masks" / f"{row.seriesuid}.nii.gz")
        assert image.dtype == np.int16
        _, line, column = np.rint(lps_to_voxel(affine, np.array([row.coordX, row.coordY, row.coordZ]))).astype(int)
        assert Label.NODULE in mask[line - 2 : line + 3, column - 2 : column + 3]


def test_real_and_generated_assets_are_mixed():
    assets = pd.read_parquet(TOUR / "synthetic" / "assets.parquet")
    assert set(assets["source"]) == {"real", "generated"}
    assert set(assets["kind"]) == {"nodule", "lung"}


def test_the_chain_used_the_weights_just_trained():
    settings = json.loads((TOUR / "synthetic" / "run.json").read_text(encoding="utf-8"))
    assert settings["weights_wcapsgan"] == sha256(TOUR / "nodules" / "model.pt")
    assert settings["weights_wcapsgan_lung"] == sha256(TOUR / "lungs" / "model_lung.pt")
    assert settings["weights_cyclegan"] == sha256(TOUR / "cyclegan" / "model.pt")


def test_sidecars_name_the_cohort_trained_on():
    split_hash = json.loads((TOUR / "cohort" / "cohort.json").read_text(encoding="utf-8"))["split_hash"]
    sidecars = sorted(TOUR.glob("*/model*.json"))
    assert len(sidecars) == 5  # lungs are trained twice, small and grown
    for sidecar in sidecars:
        assert json.loads(sidecar.read_text(encoding="utf-8"))["split_hash"] == split_hash


def test_all_runs_are_logged_and_finished():
    tracker = open_tracker(f"sqlite:///{TOUR / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in tracker.client.search_experiments()]
    runs = tracker.client.search_runs(experiments)
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = {run.info.run_name for run in runs}
    assert {"tour-lung_seg", "tour-nodules", "tour-lungs", "tour-cyclegan"} <= names
    parents = [run for run in runs if run.data.tags.get("command") == "generate"]
    assert len(parents) == 2, "composites, and the enhanced set"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) >= 4


def test_the_committed_weights_are_untouched():
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "bundles"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "models/" not in changed.stdout
