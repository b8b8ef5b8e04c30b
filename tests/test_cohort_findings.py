from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cohort_toys import SPACING_MM, make_chest_volume, write_chest

from lungsynth.cohort.patches import sphere_diameter_mm
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort
from lungsynth.cohort.scan_nodules import cut_nodule, nodule_row, read_scan_nodules, sphere_nodule
from lungsynth.ct.series import Annotations, NoduleSphere, SeriesFiles
from lungsynth.geometry import voxel_to_lps

CENTRE = (8, 32, 20)


def sphere_at(volume, centre, diameter_mm):
    x, y, z = voxel_to_lps(volume.affine, np.array(centre)).tolist()
    return NoduleSphere(series_id=volume.series_id, centre_lps_mm=(x, y, z), diameter_mm=diameter_mm)


def test_in_a_sphere_the_dense_is_nodule_and_the_rest_is_in_doubt():
    volume = make_chest_volume(nodule=(*CENTRE, 12.0))
    nodule, around = sphere_nodule(volume, sphere_at(volume, CENTRE, 40.0))
    assert nodule is not None
    mask = nodule.full_votes(volume.hu.shape) > 0
    assert np.array_equal(mask, (volume.hu > -600) & around & mask)
    assert mask[CENTRE]
    assert around[CENTRE[0], CENTRE[1], CENTRE[2] + 4]
    assert not mask[CENTRE[0], CENTRE[1], CENTRE[2] + 4]
    voxels = sphere_diameter_mm(int(mask.sum()), voxel_volume_mm3=float(np.prod(SPACING_MM)))
    assert voxels == pytest.approx(24.0, rel=0.1)


def test_a_sphere_in_empty_lung_marks_nothing():
    volume = make_chest_volume()
    nodule, around = sphere_nodule(volume, sphere_at(volume, CENTRE, 20.0))
    assert nodule is None
    assert around[CENTRE]


def test_a_nodule_far_from_any_lung_is_said(tmp_path):
    source = tmp_path / "in"
    write_chest(source, "A", nodule=(*CENTRE, 12.0))
    mask = nib.load(source / "A_nodule.nii.gz")
    beside = np.zeros(mask.shape, np.uint8)
    beside[:3, :3, :2] = 1
    nib.save(nib.Nifti1Image(beside, mask.affine), source / "A_nodule.nii.gz")
    result = prepare_cohort([source], tmp_path / "out", settings=PrepareSettings(), workers=1)
    assert result.problems == ()
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "is kept, though no lung is within 20 mm of it; is its mask that of this scan, and not flipped?" in report


def test_spheres_are_no_experts_masks():
    volume = make_chest_volume(nodule=(*CENTRE, 12.0))
    files = SeriesFiles(
        kind="nifti",
        series_id="P-001",
        patient_id="P-001",
        patient_known=True,
        files=(Path("P-001_ct.nii.gz"),),
        annotations=Annotations(spheres=(sphere_at(volume, CENTRE, 24.0), sphere_at(volume, (8, 32, 52), 10.0))),
    )
    findings = read_scan_nodules(files, volume)
    assert not findings.expert
    assert len(findings.nodules) == 1
    assert len(findings.notes) == 1
    assert not (findings.nodule & findings.unlabelled).any()
    assert findings.diseased[8]
    row = nodule_row(volume, findings.nodules[0], nodule_id="n", source="s", expert=findings.expert)
    assert row.votes == 0
    assert row.reader_diameter_mm == 24.0
    assert row.mean_hu == pytest.approx(20, abs=5)


def test_a_patch_is_centred_and_a_tumour_too_large_for_it_has_none():
    volume = make_chest_volume(nodule=(*CENTRE, 12.0))
    nodule, _ = sphere_nodule(volume, sphere_at(volume, CENTRE, 24.0))
    patches = cut_nodule(volume, nodule)
    assert patches is not None
    rows, columns = np.nonzero(patches.alpha[patches.largest] >= 0.5)
    assert rows.mean() == pytest.approx(31.5, abs=1)
    assert columns.mean() == pytest.approx(31.5, abs=1)
    assert patches.context[patches.largest, 32, 32] > -100
    large = make_chest_volume(nodule=(*CENTRE, 30.0))
    tumour, _ = sphere_nodule(large, sphere_at(large, CENTRE, 60.0))
    assert cut_nodule(large, tumour) is None
