"""What a cohort promises those who read it: frames, nodules, lungs, labels, tables, pseudo-labels."""

import hashlib
import inspect
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from interfaces import documented
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, SqueezeDim
from separation_toys import MIN_DIAMETER_MM, write_rigged_bundles
from stores import new_store

from lungsynth.cohort.patches import sphere_diameter_mm, texture_class
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort
from lungsynth.cohort.schema import RATINGS
from lungsynth.cohort.split import assign_splits
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import read_plane, write_plane
from lungsynth.geometry import PATCH_PX, PATCH_SPACING_MM, axial_affine, voxel_to_lps
from lungsynth.hounsfield import CT_RANGE_HU, Label
from lungsynth.pseudo_labels.candidates import CandidateStatus
from lungsynth.pseudo_labels.run import PseudoLabelConfig, pseudo_label_cohort

SPLITS = ("training", "validation", "test")


@pytest.fixture(scope="module")
def cohort(phantom_cohort) -> Path:
    return phantom_cohort


def datalist(cohort: Path, name: str) -> list[dict]:
    lists = json.loads((cohort / f"{name}.json").read_text(encoding="utf-8"))
    assert set(lists) == set(SPLITS)
    return [{**entry, "split": split} for split in SPLITS for entry in lists[split]]


def test_volume_affine_maps_column_row_slice_to_ras():
    affine = axial_affine(spacing_mm=(2.5, 0.8, 0.7), origin_lps_mm=(-100, -90, -300))
    volume = Volume(hu=np.zeros((3, 4, 5), np.int16), affine=affine, series_id="s", patient_id="p")
    assert volume.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    x, y, z, _ = affine @ [4, 0, 0, 1]
    assert (x, y, z) == pytest.approx((100 - 4 * 0.7, 90, -300)), "columns run to the patient's left: RAS x falls"
    assert nib.aff2axcodes(affine) == ("L", "P", "S")


def test_annotations_are_lps():
    affine = axial_affine(spacing_mm=(2.5, 0.8, 0.7), origin_lps_mm=(-100, -90, -300))
    assert voxel_to_lps(affine, np.array([2, 3, 4])) == pytest.approx([-100 + 4 * 0.7, -90 + 3 * 0.8, -300 + 2 * 2.5])


def test_slice_file_is_exact_and_monai_sees_the_same_frame(tmp_path):
    plane = np.random.default_rng(0).integers(*CT_RANGE_HU, (6, 9)).astype(np.int16)
    affine = axial_affine(spacing_mm=(2, 0.8, 0.7), origin_lps_mm=(1, 2, 3))
    write_plane(tmp_path / "a.nii.gz", plane, affine)
    assert nib.load(tmp_path / "a.nii.gz").shape == (9, 6, 1)
    again, same = read_plane(tmp_path / "a.nii.gz")
    assert again.dtype == np.int16
    assert np.array_equal(again, plane)
    assert np.allclose(same, affine)
    load = Compose([LoadImage(), EnsureChannelFirst(), Orientation(axcodes="PLS", labels=None), SqueezeDim(dim=-1)])
    assert np.array_equal(load(tmp_path / "a.nii.gz").numpy(), plane[None])


def test_diameter_is_of_equal_size(cohort):
    nodules = pd.read_csv(cohort / "nodules.csv").dropna(subset="x_mm")
    assert (nodules["diameter_mm"] > 0).all()
    assert {"diameter_mm", "reader_diameter_mm", "votes"} <= set(nodules.columns)


def test_texture_classes(cohort):
    classes = [texture_class(t) for t in (1.0, 2.0, 2.5, 3.9, 4.0, 5.0, None)]
    assert classes == ["ground_glass", "ground_glass", "part_solid", "part_solid", "solid", "solid", "unknown"]
    nodules = pd.read_csv(cohort / "nodules.csv")
    assert (nodules["texture_class"] == [texture_class(t) for t in nodules["texture"]]).all()


def test_patch(cohort):
    assert (PATCH_PX, PATCH_SPACING_MM) == (64, 0.7)
    for entry in datalist(cohort, "nodules"):
        with np.load(cohort / entry["nodule"]) as patch:
            assert patch["hu"].dtype == patch["context"].dtype == np.int16
            assert patch["alpha"].dtype == np.float16
            assert patch["valid"].dtype == bool
            assert patch["hu"].shape[1:] == (64, 64)
            alpha = patch["alpha"]
            assert 0 <= alpha.min() <= alpha.max() <= 1
            assert not alpha[~patch["valid"]].any()
            assert not alpha[:, [0, -1], :].any()
            assert not alpha[:, :, [0, -1]].any()


def test_solid_fraction_follows_texture(cohort):
    nodules = pd.read_csv(cohort / "nodules.csv").dropna(subset="solid_fraction")
    assert nodules["solid_fraction"].between(0, 1).all()
    means = nodules.groupby("texture_class")["mean_hu"].mean()
    assert means.get("solid", 0) > means.get("ground_glass", -600)


def test_cube(cohort, tmp_path):
    assert not datalist(cohort, "cubes"), "the phantom's slices lie 12 mm apart: fewer than three show a nodule"
    places = np.indices((51, 51, 51)) - 25
    mask = np.stack([np.linalg.norm(places, axis=0) <= radius for radius in (8, 4, 6)]).astype(np.uint8)
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "cubes.npz", hu=np.where(mask, 20, -850).astype(np.int16), mask=mask)
    (tmp_path / "source" / "index.csv").write_text(
        "row,name,lidc_patient\n0,a,LIDC-IDRI-0001\n1,b,LIDC-IDRI-0002\n2,c,\n", encoding="utf-8"
    )
    prepare_cohort([tmp_path / "source"], tmp_path / "out", settings=PrepareSettings(split="test"), workers=1)
    cubes, nodules = (datalist(tmp_path / "out", name) for name in ("cubes", "nodules"))
    assert [entry["nodule_id"] for entry in cubes] == [entry["nodule_id"] for entry in nodules]
    assert [entry["patient_id"] for entry in cubes] == ["LIDC-IDRI-0001", "LIDC-IDRI-0002"]  # the third may be a twin
    for entry in cubes:
        with np.load(tmp_path / "out" / entry["cube"]) as cube:
            hu, alpha = cube["hu"], cube["alpha"]
        assert (hu.dtype, alpha.dtype) == (np.int16, np.float16)
        assert hu.shape == alpha.shape == (64, 64, 64)
        assert 0 <= alpha.min() <= alpha.max() <= 1
        assert not any(alpha.take([0, -1], axis=axis).any() for axis in range(3))
        diameter_mm = sphere_diameter_mm(int((alpha >= 0.5).sum()), voxel_volume_mm3=PATCH_SPACING_MM**3)
        assert diameter_mm == pytest.approx(entry["diameter_mm"], abs=0.4)


def test_normal_slices_on_the_generators_grid(cohort):
    lungs = datalist(cohort, "lungs")
    assert lungs
    for entry in lungs:
        with np.load(cohort / entry["lung"]) as lung:
            assert lung["hu"].shape == lung["mask"].shape == (256, 256)
            assert (lung["hu"].dtype, lung["mask"].dtype) == (np.int16, np.uint8)
            assert set(np.unique(lung["mask"])) == {0, 1}
            rows, columns = np.nonzero(lung["mask"])
            middle = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
            assert middle == pytest.approx((127.5, 127.5), abs=3)


def test_label_ids(cohort):
    assert [int(label) for label in Label] == [0, 1, 2, 255]
    found = {int(v) for path in (cohort / "labels").iterdir() for v in np.unique(read_plane(path)[0])}
    assert {0, 1, 2} <= found <= {0, 1, 2, 255}


def test_entries_say_what_an_expert_drew(cohort):
    drawn = [entry["labelled"] for entry in datalist(cohort, "segmentation")]
    assert all(set(labels) <= {"lung", "nodule"} for labels in drawn)
    assert any("nodule" in labels for labels in drawn)


def test_files(cohort):
    series, nodules = pd.read_csv(cohort / "series.csv"), pd.read_csv(cohort / "nodules.csv")
    for table, path in ((series, "series.csv"), (nodules, "nodules.csv")):
        assert set(table.columns) <= documented("formats.md", path)
    described = json.loads((cohort / "cohort.json").read_text(encoding="utf-8"))
    assert described["format"] == 2
    assert {"settings", "sources", "split_hash", "counts", "problems"} <= set(described)
    for name in ("montage_nodules.png", "montage_lungs.png", "report.md"):
        assert (cohort / name).is_file()


def test_datalists(cohort):
    measured = {"diameter_mm", "votes", "mean_hu", "solid_fraction", "reader_diameter_mm", *RATINGS}
    of_nodules = {"nodule_id", "category", *measured}
    keys = {
        "segmentation": {"image", "label", "labelled", "kind"},
        "nodules": {"nodule", *of_nodules},
        "cubes": {"cube", *of_nodules},
        "lungs": {"lung", "image", "label", "category"},
        "enhancement": {"image", "label"},
    }
    for name, wanted in keys.items():
        for entry in datalist(cohort, name):
            needed = wanted - {"label"} if entry.get("kind") == "nodule" else wanted
            assert needed | {"patient_id", "series_id", "source"} <= set(entry)
            files = [entry[key] for key in ("image", "label", "nodule", "cube", "lung") if key in entry]
            assert all((cohort / path).is_file() for path in files)
    nodules = pd.read_csv(cohort / "nodules.csv", index_col="nodule_id")
    spheres = [entry for entry in datalist(cohort, "segmentation") if entry["kind"] == "sphere"]
    assert spheres
    for entry in datalist(cohort, "segmentation"):
        if entry["kind"] != "slice":
            is_sphere = entry in spheres
            assert entry["labelled"] == ([] if is_sphere else ["nodule"])
            with np.load(cohort / entry["image"]) as window:
                assert (
                    window["hu"].shape
                    == window["label"].shape
                    == window["votes"].shape
                    == (len(window["z_mm"]), 128, 128)
                )
                assert (np.diff(window["z_mm"]) > 0).all()
            with np.load(cohort / "nodules" / Path(entry["image"]).name) as patch:
                assert ("sphere" in patch.files) == is_sphere
            assert (nodules["votes"][Path(entry["image"]).stem] == 0) == is_sphere
    assert measured <= set(nodules.columns)
    for entry in datalist(cohort, "nodules"):
        found = [np.nan if entry[name] is None else entry[name] for name in sorted(measured)]
        assert np.allclose(
            found, nodules.loc[entry["nodule_id"], sorted(measured)].astype(float), atol=1e-4, equal_nan=True
        )
    for entry in datalist(cohort, "lungs"):
        assert Label.NODULE not in read_plane(cohort / entry["label"])[0]


def test_no_patient_on_two_sides_and_the_hash_tells(cohort):
    for name in ("segmentation", "nodules", "lungs", "enhancement"):
        sides = pd.DataFrame(datalist(cohort, name)).groupby("patient_id")["split"].nunique()
        assert (sides == 1).all()
    series = pd.read_csv(cohort / "series.csv")
    lines = sorted({f"{row.patient_id},{row.split}" for row in series.itertuples()})
    described = json.loads((cohort / "cohort.json").read_text(encoding="utf-8"))
    digests = {hashlib.sha256(text.encode()).hexdigest() for text in ("\n".join(lines), "\n".join(lines) + "\n")}
    assert described["split_hash"] in digests
    assert inspect.getdoc(assign_splits)


def test_luna16_series_find_their_patients(cohort):
    series = pd.read_csv(cohort / "series.csv")
    assert series["patient_known"].all(), "the phantom's patients.csv maps LUNA16 series to patients"
    assert series["patient_id"].str.lower().str.startswith("phantom").all()


@pytest.fixture(scope="module")
def separated(half_read_cohort, tmp_path_factory) -> tuple[Path, Path]:
    """A cohort, and what separating it gave."""
    folder = tmp_path_factory.mktemp("separated")
    bundles = write_rigged_bundles(folder / "bundles", "contract")
    settings = PseudoLabelConfig(
        cohort=half_read_cohort, out=folder / "out", bundles=bundles, min_diameter_mm=MIN_DIAMETER_MM
    )
    pseudo_label_cohort(settings, tracking_uri=new_store(folder))
    return half_read_cohort, folder / "out"


def test_a_separated_cohort_is_a_cohort_of_the_same_split(separated):
    before, after = separated
    for check in (test_texture_classes, test_patch, test_normal_slices_on_the_generators_grid):
        check(after)
    test_files(after)
    test_datalists(after)
    test_no_patient_on_two_sides_and_the_hash_tells(after)
    described = [json.loads((cohort / "cohort.json").read_text(encoding="utf-8")) for cohort in separated]
    assert described[0]["split_hash"] == described[1]["split_hash"]
    promised = {"threshold", "min_diameter_mm", "weights_lung_seg", "series", "candidates", "before", "after"}
    assert set(described[1]["pseudo_labels"]) == promised
    assert all(path.samefile(before / "slices" / path.name) for path in (after / "slices").iterdir())


def test_normal_slices_keep_their_distance_from_candidates_that_count(separated):
    before, after = separated
    masks = [pd.read_csv(cohort / "series.csv")["nodule_mask"].tolist() for cohort in separated]
    assert masks[1] == [{"none": "network", "data": "data"}[mask] for mask in masks[0]]
    table = pd.read_csv(after / "candidates.csv")
    counted = table[table["outcome"].isin(["known", "too_large", "nodule"])]
    assert len(counted)
    normal = {(e["series_id"], int(Path(e["image"]).name[-11:-7])) for e in datalist(after, "lungs")}
    for row in counted.itertuples():
        near = range(row.slice_index - 1, row.slice_index + 2)  # 6 mm each
        assert not normal & {(row.series_id, index) for index in near}
    assert len(normal) < len(datalist(before, "lungs"))


def test_what_the_network_found_is_nobodys(separated):
    _, after = separated
    table = pd.read_csv(after / "candidates.csv")
    new = set(table.loc[table["outcome"].isin(["too_large", "nodule"]), "candidate_id"])
    nodules = pd.read_csv(after / "nodules.csv").set_index("nodule_id")
    assert (nodules.loc[sorted(new), "votes"] == 0).all()
    assert (nodules.loc[sorted(new), "texture_class"] == "unknown").all()
    assert new & {entry["nodule_id"] for entry in datalist(after, "nodules")}
    assert not [e for e in datalist(after, "segmentation") if Path(e["image"]).stem in new]
    drawn = [e["label"] for e in datalist(after, "enhancement") if e["label"].startswith("network/")]
    assert sorted(drawn) == sorted(f"network/{path.name}" for path in (after / "network").iterdir())
    assert all(Label.NODULE in read_plane(after / label)[0] for label in drawn)


def test_a_row_for_each_candidate(separated):
    _, after = separated
    promised = documented("formats.md", "Pseudo-labelled cohort")
    table = pd.read_csv(after / "candidates.csv")
    assert set(table["outcome"]) == {outcome.value for outcome in CandidateStatus}
    assert {*table.columns, *table["outcome"]} <= promised
