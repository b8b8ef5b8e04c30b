"""Nodules in three dimensions: requests, places, resampling, blending, files, and the transform for training."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from lungsynth.cli import main
from lungsynth.cohort.patches import NoduleCube, cube_diameter_mm
from lungsynth.cohort.reader import Cohort
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import write_nifti
from lungsynth.enhancement.label_check import LabelCheck
from lungsynth.errors import InputError
from lungsynth.export.growth import Growth
from lungsynth.geometry import axial_affine, lps_to_voxel
from lungsynth.hounsfield import Label
from lungsynth.placement.rules import PlacementRules
from lungsynth.scans.cubes import CohortCubes, CubePool, SourcedCube
from lungsynth.scans.enhance import NoduleFinding, ScanCheck, ScanEnhancement
from lungsynth.scans.insert import InsertedScan, PlacedNodule, insert_nodules
from lungsynth.scans.places import find_places
from lungsynth.scans.plan import InsertConfig
from lungsynth.scans.request import NoduleRequest, WantedNodule, draw_wanted, parse_requests
from lungsynth.scans.run import insert_into_scans
from lungsynth.scans.shape import ScanShape

SPACING_MM = (4.0, 3.0, 3.0)
SHAPE = (44, 88, 104)


def thorax(spacing_mm=SPACING_MM, shape=SHAPE, *, seed=0) -> tuple[Volume, np.ndarray]:
    """A body with two lungs of noise, and their label map."""
    rng = np.random.default_rng(seed)
    z, y, x = (
        (np.arange(size) - (size - 1) / 2).reshape([-1 if axis == k else 1 for k in range(3)]) * mm
        for axis, (size, mm) in enumerate(zip(shape, spacing_mm, strict=True))
    )
    body = (y / 105) ** 2 + (x / 140) ** 2 < 1
    lungs = np.minimum(*((z / 80) ** 2 + (y / 75) ** 2 + ((x - side) / 50) ** 2 for side in (-65, 65))) < 1
    level = np.where(lungs, -850, np.where(body, 40, -1000)).astype(np.float32)
    level = ndimage.gaussian_filter(level, 0.7)
    hu = np.rint(level + ndimage.gaussian_filter(rng.normal(0, 60, shape), 0.6)).clip(-1024, 3000).astype(np.int16)
    affine = axial_affine(spacing_mm=spacing_mm, origin_lps_mm=(-150.0, -128.0, -300.0))
    label = np.where(lungs, np.uint8(Label.LUNG), np.uint8(Label.BACKGROUND))
    return Volume(hu=hu, affine=affine, series_id="1.2.3", patient_id="p"), label


def ball(diameter_mm: float, *, hu: int = 0, stretch=(1.0, 1.0, 1.0)) -> NoduleCube:
    """An ellipsoid of equal volume, off the middle of its cube."""
    steps = [(np.arange(64) - 31.5 - off) * 0.7 / by for off, by in zip((1, -2, 3), stretch, strict=True)]
    z, y, x = np.meshgrid(*steps, indexing="ij", sparse=True)
    radius = np.sqrt(z**2 + y**2 + x**2)
    scale = np.prod(stretch) ** (1 / 3)
    alpha = np.clip((diameter_mm / 2 / scale - radius) / 1.4 + 0.5, 0, 1)
    return NoduleCube(hu=np.where(alpha > 0, hu, -850).astype(np.int16), alpha=alpha.astype(np.float16))


def pool() -> CubePool:
    def sourced(mm: float, hu: int) -> SourcedCube:
        cube = ball(mm, hu=hu)
        return SourcedCube(cube=cube, source="generated", origin=f"{mm}", diameter_mm=cube_diameter_mm(cube))

    levels = {"solid": 0, "part_solid": -350, "ground_glass": -600}
    return CubePool(nodules={name: [sourced(mm, hu) for mm in (5, 7, 9, 12, 16)] for name, hu in levels.items()})


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, np.ndarray]:
    return thorax()


@pytest.fixture(scope="module")
def shape(scan) -> ScanShape:
    volume, label = scan
    return ScanShape.of(volume.hu, label == Label.LUNG, spacing_mm=volume.spacing_mm)


# --- requests


def test_requests_are_read():
    one, other, third = parse_requests("part solid 8 - 12 mm x3, ground_glass 6mm,Any 4-5.5mm x 2")
    assert one == NoduleRequest(texture="part_solid", diameter_mm=(8, 12), count=3)
    assert other == NoduleRequest(texture="ground_glass", diameter_mm=(6, 6))
    assert (third.texture, third.diameter_mm, third.count) == ("any", (4, 5.5), 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected TEXTURE"),
        ("solid", "expected TEXTURE"),
        ("solid 8", "expected TEXTURE"),
        ("solid 8mm x0", "1 to 100"),
        ("calcified 8mm", "ground_glass, part_solid, solid"),
        ("solid 12-8mm", "smallest first"),
        ("solid 1mm", "3 to 40 mm"),
        ("solid 8mm x60, solid 9mm x60", "got 120"),
    ],
)
def test_what_is_no_request_is_one_sentence(text, said):
    with pytest.raises(InputError, match=said):
        parse_requests(text)


def test_drawn_nodules_keep_to_their_request_and_depend_on_nothing_else():
    requests = parse_requests("solid 6-10mm x20, any 5mm x20")
    drawn = draw_wanted(requests, seed=4)
    assert all(6 <= nodule.diameter_mm <= 10 for nodule in drawn[:20])
    assert len({nodule.texture for nodule in drawn[20:]}) == 3
    assert drawn[:20] == draw_wanted(requests[:1], seed=4)
    assert drawn[:20] != draw_wanted(requests[:1], seed=5)[:20]


# --- places


def test_places_keep_the_rules(scan, shape):
    wanted = [WantedNodule(texture="solid", diameter_mm=mm) for mm in (6, 14, 6, 20, 9, 6, 6)]
    rules = PlacementRules(types=("isolated",), gap_mm=5.0)
    places = find_places(shape, wanted, rules, seed=1)
    centres = np.array([place.voxel for place in places]) * SPACING_MM
    radii = np.array([nodule.diameter_mm / 2 for nodule in wanted])
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1) - radii[:, None] - radii[None]
    assert apart[~np.eye(len(wanted), dtype=bool)].min() >= 5.0
    exact = ndimage.distance_transform_edt(scan[1] == Label.LUNG, sampling=SPACING_MM)
    for place, radius in zip(places, radii, strict=True):
        at = tuple(np.rint(place.voxel).astype(int))
        assert place.distance_mm >= 1.3 * radius
        assert exact[at] == pytest.approx(place.distance_mm, abs=3.0)
    assert places == find_places(shape, wanted, rules, seed=1)
    assert places != find_places(shape, wanted, rules, seed=2)


def test_farthest_lies_deeper_and_regions_are_kept(shape):
    wanted = [WantedNodule(texture="solid", diameter_mm=6.0)] * 4
    usual = find_places(shape, wanted, PlacementRules(), seed=3)
    far = find_places(shape, wanted, PlacementRules(), seed=3, farthest=True)
    assert np.mean([place.distance_mm for place in far]) > np.mean([place.distance_mm for place in usual]) + 5
    left = find_places(shape, wanted, PlacementRules(regions=("left",)), seed=3)
    assert all(place.voxel[2] > SHAPE[2] / 2 for place in left)


def test_nodules_that_are_there_keep_others_away(scan):
    volume, label = scan
    there = np.zeros(label.shape, bool)
    there[:, :, : SHAPE[2] // 2] = label[:, :, : SHAPE[2] // 2] == Label.LUNG
    shape = ScanShape.of(volume.hu, label == Label.LUNG, spacing_mm=SPACING_MM, nodules=there)
    wanted = [WantedNodule(texture="solid", diameter_mm=6.0)] * 6
    assert all(place.voxel[2] > SHAPE[2] / 2 for place in find_places(shape, wanted, PlacementRules(), seed=0))


def test_more_than_fit_is_one_sentence_that_says_why(shape):
    wanted = [WantedNodule(texture="solid", diameter_mm=40.0)] * 30
    with pytest.raises(InputError, match=r"no room for the solid one of 40 mm beside \d+ others \(.*beside another"):
        find_places(shape, wanted, PlacementRules(), seed=0)


def test_without_lungs_nothing_is_placed(scan):
    volume, label = scan
    with pytest.raises(InputError, match="found 0"):
        ScanShape.of(volume.hu, np.zeros(label.shape, bool), spacing_mm=SPACING_MM)


# --- blending


@pytest.mark.parametrize("slice_mm", [0.6, 1.25, 2.5, 5.0, 8.0])
def test_diameter_and_place_are_right_on_any_grid(slice_mm):
    spacing_mm = (slice_mm, 0.8, 0.8)
    volume, label = thorax(spacing_mm, (round(60 / slice_mm), 120, 120))
    label[:] = Label.LUNG
    shape = ScanShape.of(volume.hu, label == Label.LUNG, spacing_mm=spacing_mm)
    wanted = [WantedNodule(texture="solid", diameter_mm=mm) for mm in (8.0, 14.0)]
    places = find_places(shape, wanted, PlacementRules(), seed=2)
    placed = [
        PlacedNodule(cube=ball(10.0, stretch=(1.2, 1.0, 0.9)), place=place, diameter_mm=nodule.diameter_mm)
        for nodule, place in zip(wanted, places, strict=True)
    ]
    inserted = insert_nodules(volume, label, placed, seed=1)
    for nodule, place, seen in zip(wanted, places, inserted.nodules, strict=True):
        assert seen.diameter_mm == pytest.approx(nodule.diameter_mm, abs=1.5)
        assert np.abs(np.subtract(seen.centre_voxel, place.voxel)).max() <= 0.5
        assert lps_to_voxel(volume.affine, np.array(seen.centre_lps_mm)) == pytest.approx(seen.centre_voxel, abs=1e-6)


def test_outside_the_nodules_the_scan_is_untouched(scan, shape):
    volume, label = scan
    before = volume.hu.copy()
    place = find_places(shape, [WantedNodule(texture="solid", diameter_mm=12.0)], PlacementRules(), seed=5)[0]
    inserted = insert_nodules(volume, label, [PlacedNodule(cube=ball(12.0), place=place, diameter_mm=12.0)], seed=1)
    assert (volume.hu == before).all()
    changed = np.argwhere(inserted.volume.hu != volume.hu)
    away_mm = np.linalg.norm((changed - place.voxel) * np.array(SPACING_MM), axis=1)
    assert len(changed) > 100
    assert away_mm.max() < 12.0
    mask = inserted.instances == 1
    assert (inserted.label[mask] == Label.NODULE).all()
    assert (inserted.label[~mask] == label[~mask]).all()
    middle = tuple(np.rint(place.voxel).astype(int))
    assert inserted.volume.hu[middle] == pytest.approx(0, abs=120)
    assert inserted.nodules[0].mean_hu == pytest.approx(inserted.volume.hu[mask].mean())


def test_a_nodule_at_the_pleura_ends_there(scan, shape):
    volume, label = scan
    rules = PlacementRules(types=("juxta_pleural",), pleural_clearance=0.2, clearance=1.0)
    places = find_places(shape, [WantedNodule(texture="solid", diameter_mm=16.0)] * 3, rules, seed=2)
    placed = [PlacedNodule(cube=ball(16.0), place=place, diameter_mm=16.0) for place in places]
    inserted = insert_nodules(volume, label, placed, seed=0)
    assert (label[inserted.instances > 0] == Label.LUNG).all()
    assert min(nodule.diameter_mm for nodule in inserted.nodules) < 15.5


def test_noise_of_a_nodule_is_that_of_the_scan_also_from_slice_to_slice():
    spacing_mm = (1.0, 1.0, 1.0)
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(0, 1, (60, 120, 120)), (1.2, 0.8, 0.8))
    hu = np.rint(-850 + 40 * noise / noise.std()).astype(np.int16)
    hu[:, :8] = 40  # tissue, so that the scan has a wall
    affine = axial_affine(spacing_mm=spacing_mm, origin_lps_mm=(0.0, 0.0, 0.0))
    volume = Volume(hu=hu, affine=affine, series_id="n", patient_id="n")
    label = np.where(hu < -400, np.uint8(Label.LUNG), np.uint8(Label.BACKGROUND))
    label[:, 8:] = Label.LUNG
    shape = ScanShape.of(hu, label == Label.LUNG, spacing_mm=spacing_mm)
    place = find_places(shape, [WantedNodule(texture="solid", diameter_mm=28.0)], PlacementRules(), seed=0)[0]
    flat = PlacedNodule(cube=ball(28.0, hu=-850), place=place, diameter_mm=28.0)
    inserted = insert_nodules(volume, label, [flat], seed=3)
    core = ndimage.binary_erosion(inserted.instances == 1, iterations=4)
    inside = inserted.volume.hu.astype(float)
    assert inside[core].std() == pytest.approx(40, rel=0.25)
    both = core[:-1] & core[1:]
    correlation = np.corrcoef(inside[:-1][both], inside[1:][both])[0, 1]
    own = np.corrcoef(hu[:-1, 20:].ravel(), hu[1:, 20:].ravel())[0, 1]
    assert correlation == pytest.approx(own, abs=0.15)


# --- enhancement and check


class Spots:
    """Finds what is denser than lung in a lung, as far as it is not told to be blind; and what it is told to invent."""

    operating_point = 0.5

    def __init__(self, *, above_hu: float = -300, invented: tuple[float, ...] | None = None):
        self.above_hu, self.invented, self.seen = above_hu, invented, []

    def __call__(self, hu, spacing_mm):
        self.seen.append(hu.shape)
        lung = ndimage.binary_closing(hu < -500, iterations=3)
        pieces, count = ndimage.label((hu > self.above_hu) & lung)
        big = [k for k in range(1, count + 1) if (pieces == k).sum() > 8]
        found = [[*ndimage.center_of_mass(pieces == k), 8.0, 0.9] for k in big]
        if self.invented and hu.max() > 2000:
            found.append([*self.invented, 5.0, 0.8])
        return {"candidates": np.array(found).reshape(-1, 5)}


def brighten(by: int):
    """An enhancer that adds to what is dense, and an even noise to all."""

    def enhance(hu, nodule_mask):
        return (hu + np.where(hu > -300, by, 0) + np.arange(hu.size).reshape(hu.shape) % 7).astype(np.int16)

    return enhance


@pytest.fixture(scope="module")
def with_nodules(scan, shape) -> InsertedScan:
    volume, label = scan
    wanted = [WantedNodule(texture="solid", diameter_mm=mm) for mm in (20.0, 16.0)]
    places = find_places(shape, wanted, PlacementRules(), seed=2)
    nodules = [
        PlacedNodule(cube=ball(w.diameter_mm), place=p, diameter_mm=w.diameter_mm)
        for w, p in zip(wanted, places, strict=True)
    ]
    return insert_nodules(volume, label, nodules, seed=1)


def check_with(detector: Spots) -> ScanCheck:
    return ScanCheck(LabelCheck(detector, margin=0.0))


def test_a_check_tells_what_is_found_and_what_is_new(scan, with_nodules):
    volume, _ = scan
    findings, n_new = check_with(Spots()).findings(volume.hu, with_nodules)
    assert findings == [NoduleFinding(0.9, found=True)] * 2
    assert n_new == 0
    findings, _ = check_with(Spots(above_hu=3000)).findings(volume.hu, with_nodules)
    assert findings == [NoduleFinding(0.0, found=False)] * 2
    detector = Spots(invented=(1.0, 5.0, 5.0))
    brighter = replace(
        with_nodules, volume=replace(volume, hu=np.where(with_nodules.instances, 2500, volume.hu).astype(np.int16))
    )
    assert check_with(detector).findings(volume.hu, brighter)[1] >= 1
    assert all(len(seen) == 3 and seen[0] < len(volume.hu) for seen in detector.seen)  # stacks, not whole scans


def test_enhancing_changes_nodules_alone_and_leaves_out_its_noise(scan, with_nodules):
    volume, _ = scan
    enhanced, which = ScanEnhancement(brighten(50))(volume.hu, with_nodules)
    assert which == (True, True)
    touched = with_nodules.volume.hu != volume.hu
    assert (enhanced.volume.hu == volume.hu)[~touched].all()
    assert (enhanced.label == with_nodules.label).all()
    core = (with_nodules.volume.hu > -200) & (volume.hu < -400)
    np.testing.assert_array_equal((enhanced.volume.hu - with_nodules.volume.hu)[core], 50)
    for before, after in zip(with_nodules.nodules, enhanced.nodules, strict=True):
        assert after.mean_hu > before.mean_hu + 20


def test_a_nodule_that_the_check_minds_stays_as_it_was(scan, with_nodules):
    volume, _ = scan
    lost, kept = ScanEnhancement(brighten(-400), check_with(Spots()))(volume.hu, with_nodules)
    assert kept == (False, False)
    assert (lost.volume.hu == with_nodules.volume.hu).all()
    same, kept = ScanEnhancement(brighten(50), check_with(Spots()))(volume.hu, with_nodules)
    assert kept == (True, True)
    assert (same.volume.hu != with_nodules.volume.hu).any()


# --- runs and files


def save_scan(folder: Path, name: str, *, seed: int = 0, turned: bool = False) -> Volume:
    volume, label = thorax(seed=seed)
    if turned:  # the same voxels in another order of axes and directions
        for suffix, array in (("", volume.hu), ("_lung", (label == Label.LUNG).astype(np.uint8))):
            image = nib.Nifti1Image(array.transpose(2, 1, 0), volume.affine)
            turn = nib.orientations.axcodes2ornt(("S", "L", "A"))
            own = nib.io_orientation(image.affine)
            image.as_reoriented(nib.orientations.ornt_transform(own, turn)).to_filename(
                folder / f"{name}{suffix}.nii.gz"
            )
        return volume
    write_nifti(folder / f"{name}.nii.gz", volume)
    write_nifti(folder / f"{name}_lung.nii.gz", (label == Label.LUNG).astype(np.uint8), volume.affine)
    return volume


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans of mine")
    save_scan(folder, "one")
    save_scan(folder, "two", seed=1)
    return folder


def config(source: Path, out: Path, **changes) -> InsertConfig:
    given = {"nodules": parse_requests("solid 10-14mm x2, ground_glass 9mm"), "cubes": pool(), "seed": 3} | changes
    return InsertConfig(sources=(source,), out=out, **given)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_run_gives_scans_with_masks_and_lists(source, tmp_path):
    result = insert_into_scans(config(source, tmp_path / "out", pairs=True))
    assert (result.scans, result.samples, result.nodules, result.problems) == (2, 4, 6, ())
    rows = read_rows(tmp_path / "out/nodules.csv")
    assert len(rows) == 6
    for row in rows:
        image = nib.load(tmp_path / "out/images" / f"{row['name']}.nii.gz")
        instances = np.asarray(nib.load(tmp_path / "out/nodules" / f"{row['name']}.nii.gz").dataobj)
        label = np.asarray(nib.load(tmp_path / "out/labels" / f"{row['name']}.nii.gz").dataobj)
        mask = instances == int(row["number"])
        assert (label[mask] == Label.NODULE).all()
        x, y, z = (image.affine @ [*np.argwhere(mask).mean(axis=0), 1])[:3]
        there = [float(row[f"centre_lps_mm_{axis}"]) for axis in "xyz"]
        assert np.allclose([-x, -y, z], there, atol=0.01)
        assert float(row["diameter_mm"]) == pytest.approx(float(row["asked_diameter_mm"]), abs=1.5)
    without = np.asarray(nib.load(tmp_path / "out/images/scan0001-without.nii.gz").dataobj)
    assert (without == np.asarray(nib.load(source / "one.nii.gz").dataobj)).all()
    detection = json.loads((tmp_path / "out/detection.json").read_text(encoding="utf-8"))
    assert [len(entry["box"]) for entry in detection["training"]] == [3, 0, 3, 0]
    assert [row["series_id"] for row in read_rows(tmp_path / "out/scans.csv")] == ["one", "two"]


def test_same_seed_same_bytes_and_a_stopped_run_goes_on(source, tmp_path, monkeypatch):
    insert_into_scans(config(source, tmp_path / "whole"))
    from lungsynth.scans import run

    real, written = run.write_scan, []

    def stops(*args, **kwargs):
        if written:
            raise KeyboardInterrupt
        written.append(1)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_scan", stops)
        with pytest.raises(KeyboardInterrupt):
            insert_into_scans(config(source, tmp_path / "again"))
    assert not (tmp_path / "again/nodules.csv").exists()
    insert_into_scans(config(source, tmp_path / "again"))
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")
    with pytest.raises(InputError, match="another run"):
        insert_into_scans(config(source, tmp_path / "again", seed=4))


def test_orientation_of_the_file_changes_nothing_but_the_order_of_voxels(source, tmp_path):
    turned = tmp_path / "turned"
    turned.mkdir()
    save_scan(turned, "one", turned=True)
    insert_into_scans(config(turned, tmp_path / "a"))
    straight = tmp_path / "straight"
    straight.mkdir()
    save_scan(straight, "one")
    insert_into_scans(config(straight, tmp_path / "b"))
    assert digests(tmp_path / "a/images") == digests(tmp_path / "b/images")
    assert (tmp_path / "a/nodules.csv").read_bytes() == (tmp_path / "b/nodules.csv").read_bytes()


def test_variants_differ_and_growth_keeps_places(source, tmp_path):
    growth = Growth(days=(0, 90), doubling_days=90.0)
    result = insert_into_scans(
        config(source, tmp_path / "out", nodules=parse_requests("solid 9mm"), variants=2, growth=growth)
    )
    assert result.samples == 8
    rows = {row["name"]: row for row in read_rows(tmp_path / "out/nodules.csv")}
    first, later = rows["scan0001-v0000-day0000"], rows["scan0001-v0000-day0090"]
    assert float(later["diameter_mm"]) / float(first["diameter_mm"]) == pytest.approx(2 ** (1 / 3), rel=0.08)
    centres = np.array([[float(row[f"centre_lps_mm_{axis}"]) for axis in "xyz"] for row in (first, later)])
    assert np.abs(centres[0] - centres[1]).max() < 1.5
    other = rows["scan0001-v0001-day0000"]
    assert np.abs(centres[0] - [float(other[f"centre_lps_mm_{axis}"]) for axis in "xyz"]).max() > 5


def test_luna16_is_read_by_others_and_by_prepare(source, tmp_path):
    insert_into_scans(config(source, tmp_path / "out", format="luna16"))
    rows = read_rows(tmp_path / "out/annotations.csv")
    assert len(rows) == 6
    for row in rows:
        image = sitk.ReadImage(str(tmp_path / "out/subset0" / f"{row['seriesuid']}.mhd"))
        instances = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out/nodules" / f"{row['seriesuid']}.mhd")))
        at = image.TransformPhysicalPointToIndex([float(row[f"coord{axis}"]) for axis in "XYZ"])
        assert instances[at[::-1]] > 0
    one = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out/subset0/scan0001.mhd")))
    lungs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out/seg-lungs-LUNA16/scan0001.mhd")))
    assert one.shape == SHAPE
    assert set(np.unique(lungs)) == {0, 3, 4}


def test_dicom_is_a_series_with_its_segmentation(source, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    highdicom = pytest.importorskip("highdicom")
    one = tmp_path / "one"
    one.mkdir()
    save_scan(one, "one")
    insert_into_scans(config(one, tmp_path / "out", format="dicom"))
    insert_into_scans(config(one, tmp_path / "nifti"))
    files = sorted((tmp_path / "out/scan0001/ct").iterdir())
    slices = [pydicom.dcmread(path) for path in files]
    assert len({image.SOPInstanceUID for image in slices}) == SHAPE[0]
    assert len({s.SeriesInstanceUID for s in slices}) == 1
    assert all(image.SyntheticData == "YES" and "nodules" in image.PatientComments for image in slices)
    read = sitk.GetArrayFromImage(sitk.ReadImage([str(path) for path in files]))
    wanted = np.asarray(nib.load(tmp_path / "nifti/images/scan0001.nii.gz").dataobj).transpose(2, 1, 0)
    assert (read == wanted).all()
    segmentation = highdicom.seg.segread(tmp_path / "out/scan0001/seg.dcm")
    assert segmentation.number_of_segments == 4
    shown = segmentation.get_pixels_by_source_instance(
        [image.SOPInstanceUID for image in slices], ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    instances = np.asarray(nib.load(tmp_path / "nifti/nodules/scan0001.nii.gz").dataobj).transpose(2, 1, 0)
    for number in (1, 2, 3):
        assert (shown[..., number] == (instances == number)).all()


def test_own_nodules_stay_and_count(tmp_path):
    volume, label = thorax()
    hu, own = volume.hu.copy(), np.zeros(label.shape, np.uint8)
    own[20:24, 40:44, 72:76] = 1
    hu[own > 0] = 20
    write_nifti(tmp_path / "one.nii.gz", hu, volume.affine)
    write_nifti(tmp_path / "one_lung.nii.gz", (label == Label.LUNG).astype(np.uint8), volume.affine)
    write_nifti(tmp_path / "one_nodule.nii.gz", own, volume.affine)
    insert_into_scans(config(tmp_path, tmp_path / "out"))
    rows = read_rows(tmp_path / "out/nodules.csv")
    assert [row["source"] for row in rows] == ["generated"] * 3 + ["scan"]
    assert [float(rows[3][f"centre_voxel_{axis}"]) for axis in ("slice", "row", "column")] == [21.5, 41.5, 73.5]
    label_map = np.asarray(nib.load(tmp_path / "out/labels/scan0001.nii.gz").dataobj).transpose(2, 1, 0)
    assert (label_map[own > 0] == Label.NODULE).all()


def test_one_bad_scan_is_told_and_the_others_go_on(source, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    save_scan(folder, "good")
    empty = np.full(SHAPE, 40, np.int16)
    empty[:, 0] = -1000
    write_nifti(folder / "nolung.nii.gz", empty, thorax()[0].affine)
    result = insert_into_scans(config(folder, tmp_path / "out"))
    assert result.scans == 1
    assert len(result.problems) == 1
    assert "nolung.nii.gz" in result.problems[0].message
    (folder / "good.nii.gz").unlink()
    (folder / "good_lung.nii.gz").unlink()
    with pytest.raises(InputError, match=r"nolung\.nii\.gz"):
        insert_into_scans(config(folder, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodules", "solid"], "expected TEXTURE"),
        (["--nodules", "solid 8mm", "--variants", "0"], "--variants"),
        (["--nodules", "solid 8mm", "--nodule-cohort", "absent"], "absent"),
    ],
)
def test_wrong_options_are_one_sentence(source, tmp_path, capsys, arguments, said):
    assert main(["insert", str(source), "--out", str(tmp_path / "out"), *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_would_be_made(source, tmp_path, capsys):
    command = ["insert", str(source), "--out", str(tmp_path / "out"), "--nodules", "any 5mm x2", "--dry-run"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "2 scans, 2 samples with 2 nodules each, as nifti" in told
    assert "of one core and 23 MB" in told  # 2 x 44 slices
    assert not (tmp_path / "out").exists()


def test_the_command_inserts_generated_nodules(source, tmp_path, capsys):
    one = tmp_path / "one"
    one.mkdir()
    save_scan(one, "one")
    command = ["insert", str(one), "--out", str(tmp_path / "out"), "--nodules", "solid 12mm, ground_glass 14mm"]
    assert main([*command, "--seed", "1", "--enhance", "--check", "--tracking-uri", "none"]) == 0
    told = capsys.readouterr().out
    assert "1 samples of 1 scans with 2 inserted nodules" in told
    solid, glass = read_rows(tmp_path / "out/nodules.csv")
    n_found = [solid["found"], glass["found"]].count("True")
    assert f"lung_seg_bundle finds {n_found} of the 2, and " in told
    assert {solid["enhanced"], glass["enhanced"]} <= {"True", "False"}
    assert all(0 <= float(row["found_probability"]) <= 1 for row in (solid, glass))
    assert [solid["source"], glass["source"]] == ["generated"] * 2
    assert float(solid["mean_hu"]) > float(glass["mean_hu"]) + 100


def test_real_nodules_of_a_cohort_are_scaled_little(phantom_cohort, tmp_path):
    folder = tmp_path / "cohort"
    shutil.copytree(phantom_cohort, folder)
    listed = json.loads((folder / "nodules.json").read_text(encoding="utf-8"))
    cubes = [{**entry, "cube": f"cubes/{entry['nodule_id']}.npz"} for entry in listed["training"]]
    for entry in cubes:
        ball(entry["diameter_mm"]).save(folder / entry["cube"])
    (folder / "cubes.json").write_text(json.dumps({**listed, "training": cubes}), encoding="utf-8")
    cohort = Cohort.open(folder)
    wanted = WantedNodule(texture=cubes[0]["category"], diameter_mm=round(cubes[0]["diameter_mm"], 2))
    chosen = CohortCubes(cohort=cohort).cubes([wanted] * 3, seed=0)
    assert {cube.source for cube in chosen} == {"real"}
    assert all(0.75 <= wanted.diameter_mm / cube.diameter_mm <= 1.3 for cube in chosen)
    assert {cube.origin for cube in chosen} <= {cohort.pseudonyms.named("nodules", e["nodule_id"]) for e in cubes}
    with pytest.raises(InputError, match="in three dimensions"):
        CohortCubes(cohort=cohort).cubes([WantedNodule(texture="solid", diameter_mm=39.0)], seed=0)


# --- while a network trains


def loaded(axcodes: str):
    from monai.data.meta_tensor import MetaTensor

    volume, label = thorax()
    image = nib.Nifti1Image(volume.hu.transpose(2, 1, 0), volume.affine)
    labels = nib.Nifti1Image(label.transpose(2, 1, 0), volume.affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    image, labels = image.as_reoriented(turn), labels.as_reoriented(turn)
    return {
        "image": MetaTensor(np.asarray(image.dataobj)[None].astype(np.float32) + 0.25, affine=image.affine),
        "label_map": MetaTensor(np.ascontiguousarray(labels.dataobj)[None], affine=image.affine),
    }


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAL"])
def test_the_transform_inserts_in_any_orientation(axcodes):
    from lungsynth.data.insert_scans import RandInsertNodules3Dd

    before = loaded(axcodes)
    transform = RandInsertNodules3Dd(pool(), nodules="solid 10mm, ground_glass 8mm").set_random_state(1)
    after = transform(before)
    assert after["box"].shape == (2, 6)
    assert after["label"].tolist() == [2, 0]
    nodule = np.asarray(after["label_map"][0]) == Label.NODULE
    parts, count = ndimage.label(nodule)
    assert count == 2
    found = sorted([*(p.start for p in box), *(p.stop for p in box)] for box in ndimage.find_objects(parts))
    assert found == sorted(box for box in after["box"].int().tolist())
    changed = np.asarray(after["image"] != before["image"])[0]
    assert not changed[~ndimage.binary_dilation(nodule, iterations=4)].any()
    assert changed[nodule].mean() > 0.9
    again = RandInsertNodules3Dd(pool(), nodules="solid 10mm, ground_glass 8mm").set_random_state(1)(loaded(axcodes))
    assert (np.asarray(again["image"]) == np.asarray(after["image"])).all()


def test_a_scan_without_meta_data_is_one_sentence():
    from lungsynth.data.insert_scans import RandInsertNodules3Dd

    with pytest.raises(InputError, match="LoadImaged"):
        RandInsertNodules3Dd(pool())({"image": np.zeros((1, 4, 4, 4), np.float32)})


def test_a_training_step_of_monais_detector(monkeypatch):
    import torch
    from monai.apps.detection.networks import retinanet_detector
    from monai.apps.detection.networks.retinanet_network import RetinaNet
    from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

    from lungsynth.data.insert_scans import RandInsertNodules3Dd

    torch.manual_seed(0)
    data = RandInsertNodules3Dd(pool(), nodules="solid 12mm x2").set_random_state(0)(loaded("RAS"))

    class Features(torch.nn.Module):
        out_channels = 8

        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 4, stride=4), torch.nn.ReLU())

        def forward(self, images):
            return [self.body(images)]

    anchors = AnchorGeneratorWithAnchorShape(feature_map_scales=(1,), base_anchor_shapes=((6, 6, 4),))
    network = RetinaNet(
        spatial_dims=3, num_classes=3, num_anchors=1, feature_extractor=Features(), size_divisible=(4, 4, 4)
    )
    # MONAI asks whether its matcher is torchvision's, which is not installed; the one of this test is MONAI's own.
    monkeypatch.setattr(retinanet_detector, "Matcher", type("Matcher", (), {}))
    detector = retinanet_detector.RetinaNetDetector(network=network, anchor_generator=anchors, debug=False)
    detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
    detector.set_hard_negative_sampler(batch_size_per_image=32, positive_fraction=0.5, pool_size=10, min_neg=1)
    detector.set_target_keys(box_key="box", label_key="label")
    detector.train()
    image = torch.as_tensor(np.asarray(data["image"])) / 1000
    losses = detector([image], [{"box": data["box"], "label": data["label"]}])
    loss = losses["classification"] + losses["box_regression"]
    loss.backward()
    assert torch.isfinite(loss)
    assert losses["box_regression"] > 0
    assert network.classification_head.cls_logits.weight.grad.abs().sum() > 0
