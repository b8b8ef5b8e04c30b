"""What a catalogue and its samples promise: recipes, seeds, exports, enhancement."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_bundles import write_fake_bundles
from fake_cohort import write_fake_cohort
from interfaces import ROOT, documented
from monai.bundle import ConfigParser
from stores import new_store

from lungsynth.bundles import open_bundle
from lungsynth.cohort.reader import Cohort
from lungsynth.compositing.render import render
from lungsynth.config import EnhancementConfig, GenerateConfig, PlacementConfig
from lungsynth.ct.write import read_plane
from lungsynth.ct.write_dicom import SyntheticScan, dicom_bytes, synthetic_ct
from lungsynth.export.split import PARTS
from lungsynth.export.writer import ExportJob, export_catalogue
from lungsynth.generate import generate
from lungsynth.geometry import axial_affine
from lungsynth.hounsfield import Label, to_int16
from lungsynth.placement.assets import ALPHA_SCALE, AssetLibrary, content_hash
from lungsynth.placement.catalogue import read_catalogue
from lungsynth.placement.explain import PlanExplainer
from lungsynth.placement.plan_catalogue import PlanRecord, groups_path
from lungsynth.plan import plan

SPLITS = ("training", "validation", "test")
COMPOSITES_ALONE = EnhancementConfig(enabled=False)


@pytest.fixture(scope="module")
def chains(tmp_path_factory) -> list[Path]:
    """The same run at two batch sizes, not enhanced, from fake bundles."""
    folder = tmp_path_factory.mktemp("chains")
    bundles = write_fake_bundles(folder / "bundles", "contract")
    outs = [folder / name / "out" for name in ("one", "five")]
    for out, batch_size in zip(outs, (1, 5), strict=True):
        config = GenerateConfig(
            out=out, count=6, seed=5, bundles=bundles, enhancement=COMPOSITES_ALONE, batch_size=batch_size
        )
        generate(config, tracking_uri=new_store(folder))
    return outs


def datalist(cohort: Path, name: str) -> list[dict]:
    lists = json.loads((cohort / f"{name}.json").read_text(encoding="utf-8"))
    assert set(lists) == set(SPLITS)
    return [{**entry, "split": split} for split in SPLITS for entry in lists[split]]


def test_samples_keep_their_lungs_affine_and_generated_lungs_are_centred(chains):
    out = chains[0]
    library = AssetLibrary(out)
    for recipe in read_catalogue(out / "catalogue.parquet"):
        image, affine = read_plane(out / "images" / f"{recipe.id}.nii.gz")
        assert np.allclose(affine, library[recipe.lung].affine_matrix, atol=1e-4)
        middle = affine @ [(image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2, 0, 1]
        assert np.allclose(middle[:2], 0, atol=1e-4)


def test_assets_are_named_by_their_content():
    array = np.arange(2 * 64 * 64, dtype=np.int16).reshape(2, 64, 64)
    assert re.fullmatch(r"[0-9a-f]{16}", content_hash(array))
    assert content_hash(array) == content_hash(array.copy()) != content_hash(array[::-1])
    assert ALPHA_SCALE == 16384


def test_recipes_rebuild_their_samples(chains):
    out = chains[0]
    library = AssetLibrary(out)
    for recipe in read_catalogue(out / "catalogue.parquet"):
        rebuilt = render(recipe, library)
        assert np.array_equal(rebuilt.image, read_plane(out / "images" / f"{recipe.id}.nii.gz")[0])
        assert np.array_equal(rebuilt.label, read_plane(out / "masks" / f"{recipe.id}.nii.gz")[0])


def test_same_seed_same_bytes_whatever_the_batch_size(chains):
    # `.parts` notes what is done, by batches.
    files = [[p for p in o.rglob("*") if p.is_file() and p.parent.name != ".parts"] for o in chains]
    first, second = ({p.relative_to(o): p.read_bytes() for p in f} for o, f in zip(chains, files, strict=True))
    assert first == second


def test_the_selection_accounts_for_every_candidate(chains, enhanced):
    promised = documented("formats.md", "Selection report")
    for out, strategy, candidates in ((chains[0], "none", 1), (enhanced / "out", "coverage", 3)):
        told = json.loads((out / "selection.json").read_text(encoding="utf-8"))
        assert set(told) == {"format", "strategy", "candidates", "nodules", "lungs"}
        assert (told["format"], told["strategy"], told["candidates"]) == (2, strategy, candidates)
        kept = dict.fromkeys(("nodules", "lungs"), 0)
        for kind in kept:
            for counts in told[kind].values():
                assert (
                    set(counts)
                    == {*("generated", "kept", "copies", "unlike", "surplus", "unusable", "kept_unlike", "real")}
                    <= promised
                )
                parts = ("kept", "copies", "unlike", "surplus", "unusable")
                assert counts["generated"] == sum(counts[name] for name in parts)
                assert counts["generated"] >= candidates * counts["kept"]
                kept[kind] += counts["kept"]
        stored = [asset.kind for asset in AssetLibrary(out) if asset.source == "generated"]
        assert kept == {"nodules": stored.count("nodule"), "lungs": stored.count("lung")}
        assert len(list((out / "assets").iterdir())) == len(AssetLibrary(out))


def exported(chain: Path, out: Path, kind: str, **how: object) -> dict[str, bytes]:
    export_catalogue(ExportJob(catalogue=chain / "catalogue.parquet", out=out, format=kind), **how)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_sample_is_its_lung_outside_the_nodules_and_noise_follows_the_seed(chains):
    library = AssetLibrary(chains[0])
    for recipe in read_catalogue(chains[0] / "catalogue.parquet"):
        sample, (lung, _) = render(recipe, library), library.load(recipe.lung)
        changed = sample.image != lung
        for row_from, column_from, row_to, column_to in sample.boxes:
            changed[max(0, row_from - 8) : row_to + 8, max(0, column_from - 8) : column_to + 8] = False
        assert not changed.any()
        assert np.array_equal(sample.image, render(recipe, AssetLibrary(chains[0])).image)


def test_files_of_an_export(chains, tmp_path):
    ids = [recipe.id for recipe in read_catalogue(chains[0] / "catalogue.parquet")]
    beside = {"annotations.csv", "datalist.json", "detection.json", "coco.json", "checksums.sha256", "export.json"}
    beside |= {"README.md"}
    found = exported(chains[0], tmp_path / "nifti", "nifti")
    images = {f"{folder}/{name}.nii.gz" for name in ids for folder in ("images", "masks")}
    assert {name for name in found if not name.startswith(".parts/")} == beside | images
    for name in images:
        assert found[name] == (chains[0] / name).read_bytes()
    shards = exported(chains[0], tmp_path / "webdataset", "webdataset")
    assert [name for name in shards if name.startswith("shards/")] == ["shards/000000000-000000006.tar"]


def test_same_bytes_in_pieces(chains, tmp_path):
    whole, out = exported(chains[0], tmp_path / "whole", "png"), tmp_path / "pieces"
    exported(chains[0], out, "png", begin=4)
    pieces = exported(chains[0], out, "png", begin=0, end=5)
    assert {k: v for k, v in whole.items() if ".parts" not in k} == {
        k: v for k, v in pieces.items() if ".parts" not in k
    }


def test_dicom_is_marked_and_names_nobody():
    first, again, other = (
        synthetic_ct(
            np.full((4, 5), -800, dtype=np.int16),
            axial_affine(spacing_mm=(1.0, 0.7, 0.7), origin_lps_mm=(0.0, 0.0, 0.0)),
            SyntheticScan(subject="synth-a", name=name, derivation="recipe synth-a"),
        )
        for name in ("synth-a", "synth-a", "synth-a-without")
    )
    assert dicom_bytes(first) == dicom_bytes(again)
    assert first.SOPInstanceUID != other.SOPInstanceUID
    assert (first.SyntheticData, first.ImageType[0], first.PatientBirthDate) == ("YES", "DERIVED", "")
    assert first.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109100"


def test_a_plan_has_the_chains_columns_and_answers_for_its_pairs(chains, tmp_path):
    placement = PlacementConfig.at_scale(lungs=3, groups=5)
    config = GenerateConfig(out=tmp_path, library=chains[0], count=6, seed=1, placement=placement)
    plan(config)
    planned, chained = (read_catalogue(path) for path in (config.catalogue_path, chains[0] / "catalogue.parquet"))
    assert planned.table.schema.equals(chained.table.schema)
    record = PlanRecord.read(planned)
    assert {sum(part.verdicts.values()) for part in record.parts.values()} == {3 * 5}
    assert groups_path(config.catalogue_path).is_file()
    explainer = PlanExplainer(config.catalogue_path, library=chains[0])
    assert all(explainer.explain(recipe.id)[1].kept for recipe in planned)
    assert (render(planned[0], AssetLibrary(chains[0])).label == Label.NODULE).any()


def test_a_region_is_enhanced_as_in_its_slice():
    enhancer = open_bundle(ROOT / "bundles", "cyclegan", component="enhancer")
    reach, rng = enhancer.receptive_field_px // 2, np.random.default_rng(0)
    rows, columns = np.mgrid[:200, :180]
    lung = np.where(np.hypot(rows - 100, columns - 90) < 60, -850, 40) + rng.normal(0, 30, (200, 180))
    hu, nodule = to_int16(lung), np.zeros((200, 180), np.bool_)
    nodule[90:100, 80:90] = True
    top, left = ((start - reach) // enhancer.alignment_px * enhancer.alignment_px for start in (80, 70))
    seen = slice(top, 110 + reach), slice(left, 100 + reach)
    alone = enhancer(np.ascontiguousarray(hu[seen]), nodule[seen])[80 - top : 110 - top, 70 - left : 100 - left]
    whole = enhancer(hu, nodule)
    assert np.abs(alone.astype(int) - whole[80:110, 70:100]).max() <= 1
    assert np.abs(whole.astype(int) - hu).max() <= enhancer.max_residual_hu


@pytest.fixture(scope="module")
def enhanced(tmp_path_factory) -> Path:
    """Composites for the enhancer's training, and an export of them with the enhancer."""
    folder = tmp_path_factory.mktemp("enhanced")
    bundles = write_fake_bundles(folder / "bundles", "enhancing")
    (folder / "cohort").mkdir()
    write_fake_cohort(folder / "cohort", open_bundle(bundles, "wcapsgan"))
    config = GenerateConfig(
        out=folder / "out",
        count=6,
        seed=5,
        bundles=bundles,
        cohort=folder / "cohort",
        exclude_enhancer_patients=True,
        placement=PlacementConfig(real_share=0.5),
        enhancement=COMPOSITES_ALONE,
    )
    generate(config, tracking_uri=new_store(folder))
    for kind, gate in (("gated", True), ("ungated", False)):
        catalogue = folder / "out" / "catalogue.parquet"
        settings = {"format": "nifti", "enhance": True, "bundles": bundles, "label_check": gate}
        export_catalogue(ExportJob(catalogue=catalogue, out=folder / kind, **settings))
    return folder


def test_composites_name_their_patients_and_spare_those_of_the_reals(enhanced):
    lists = json.loads((enhanced / "out" / "datalist.json").read_text(encoding="utf-8"))
    listed = {entry["id"]: entry for part in PARTS for entry in lists[part]}
    cohort = {e["patient_id"] for e in datalist(enhanced / "cohort", "enhancement") if e["split"] == "training"}
    named = {name for entry in listed.values() for name in entry["patient_id"].split(";")} - {"none"}
    assert cohort == {"p0"}
    assert named
    names = Cohort.open(enhanced / "cohort").pseudonyms.patients
    assert named <= {names[f"p{index}"] for index in range(1, 6)}
    library = AssetLibrary(enhanced / "out")
    for recipe in read_catalogue(enhanced / "out" / "catalogue.parquet"):
        entry = listed[recipe.id]
        assert entry["image"] == f"images/{recipe.id}.nii.gz"
        real = {asset for asset in (recipe.lung, *(n.asset for n in recipe.nodules)) if library[asset].source == "real"}
        assert (entry["patient_id"] != "none") == bool(real)
        assets = [recipe.lung, *(nodule.asset for nodule in recipe.nodules)]
        assert entry["parts_without_patient"] == sum(library[asset].source == "generated" for asset in assets)


def test_an_enhanced_export_says_what_became_of_labels_and_hu(enhanced):
    promised = documented("formats.md", "enhanced.json")
    for kind, verdict in (("gated", "kept"), ("ungated", "unchecked")):
        told = json.loads((enhanced / kind / "enhanced.json").read_text(encoding="utf-8"))
        assert {key for key in told if not key.endswith("_hu")} <= promised
        assert (told["samples"], told[verdict]) == (6, 6)
        assert (told["lung_mean_hu"], told["nodule_p95_hu"]) == (1, 0)
        assert not (enhanced / kind / ".enhanced").exists()
    weights = [
        json.loads((enhanced / kind / "export.json").read_text(encoding="utf-8"))["label_check"]
        for kind in ("gated", "ungated")
    ]
    assert (bool(weights[0]), weights[1]) == (True, None)
    before = {path.name: path.read_bytes() for path in (enhanced / "out" / "masks").iterdir()}
    assert before == {path.name: path.read_bytes() for path in (enhanced / "gated" / "masks").iterdir()}


def test_training_takes_what_a_run_of_the_chain_lists(chains):
    read_extra = open_lung_seg("read_extra", path=str(chains[0] / "datalist.json"))
    assert len(read_extra) == len(json.loads((chains[0] / "datalist.json").read_text(encoding="utf-8"))["training"])
    for sample in read_extra:
        assert sample["labelled"] == [1.0, 1.0]
        assert {1, 2} <= set(np.unique(read_plane(sample["label"])[0]))
    config = ConfigParser.load_config_file(ROOT / "bundles/lung_seg_bundle/configs/train.json")
    assert (config["extra_datalist"], config["train"]["dataset"]["data"]["extra"]) == (None, "@extra_datalist")


def open_lung_seg(function: str, **arguments: object) -> list[dict]:
    """Calls a function of the bundle's data lists by the bundle's own way, a config."""
    root = ROOT / "bundles" / "lung_seg_bundle"
    if str(root) not in sys.path:
        sys.path.append(str(root))
    return ConfigParser({"it": {"_target_": f"lung_seg.datalist.{function}", **arguments}}).get_parsed_content("it")
