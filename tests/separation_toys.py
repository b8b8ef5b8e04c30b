"""Phantom scans that nobody has looked at, and a detector that sees exactly what was painted for it.

A voxel of 2000 + p HU is a nodule of p percent; everything else is not.
"""

import numpy as np
from fake_bundles import linear_state, write_bundle

from lungsynth.cohort.phantom.files import write_luna16, write_msd
from lungsynth.cohort.phantom.nodules import NoduleSpec
from lungsynth.cohort.phantom.patient import draw_patient
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import write_nifti

GRID = {"size_px": 96, "slices": 24, "slice_spacing_mm": 6.0}
MIN_DIAMETER_MM = 8.0
_DETECTOR = '''
"""A detector that sees what tests painted."""

import numpy as np
from scipy import ndimage


class Detector:
    operating_point = 0.5

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, hu, spacing_mm):
        painted = hu >= 2000
        nodule = np.where(painted, (hu - 2000) / 100, 0).astype(np.float16)
        regions, count = ndimage.label(painted, np.ones((3, 3, 3)))
        rows = []
        for index in range(1, count + 1):
            voxels = np.argwhere(regions == index)
            volume = len(voxels) * np.prod(spacing_mm)
            rows.append([*voxels.mean(axis=0), np.cbrt(6 * volume / np.pi), nodule[regions == index].max()])
        rows = np.array(rows, dtype=np.float32).reshape(-1, 5)
        return {"candidates": rows, "nodule": nodule, "lung": (hu < -500).astype(np.float16)}
'''


def write_rigged_bundles(bundles, prefix):
    """`lung_seg_bundle` with the detector above; `prefix` keeps the packages of two folders apart."""
    package = f"{prefix}_rigged"
    component = {
        "_target_": f"{package}.seeing.Detector",
        "weights": "$'/'.join([str(@bundle_root), 'models', 'model.pt'])",
    }
    root = write_bundle(
        bundles,
        "lung_seg",
        package,
        {"inference.json": {"bundle_root": ".", "detector": component}},
        {"model.pt": linear_state(2)},
    )
    (root / package / "seeing.py").write_text(_DETECTOR, encoding="utf-8")
    return bundles


def draw(seed, nodules=2):
    specs = [NoduleSpec(texture_class="solid", diameter_mm=mm) for mm in (18, 16)[:nodules]]
    return draw_patient(seed, **GRID, nodules=specs)


def paint(patient, *percents):
    """The scan with its nodules painted, in their order."""
    hu = patient.volume.hu.copy()
    for nodule, percent in zip(patient.nodules, percents, strict=False):
        hu[nodule.mask > 0] = 2000 + percent
    return hu


def write_unlabelled(folder, patient, hu):
    """A scan with a lung mask, without any nodule mask."""
    name, affine = patient.volume.patient_id, patient.volume.affine
    write_nifti(folder / f"{name}_ct.nii.gz", Volume(hu=hu, affine=affine, series_id=name, patient_id=name))
    write_nifti(folder / f"{name}_lung.nii.gz", patient.lung_mask, affine)


def unread_patients():
    """Those whose scans nobody has looked at."""
    return [draw(seed) for seed in range(1, 5)]


def write_sources(folder):
    """Four scans that nobody has looked at, one with centres and diameters (LUNA16), one with a mask (MSD)."""
    patients = unread_patients()
    write_unlabelled(folder / "open", patients[0], paint(patients[0], 90, 30))
    write_unlabelled(folder / "open", patients[1], patients[1].volume.hu)
    huge = patients[2].volume.hu.copy()
    huge[9:13, 30:56, 15:35] = 2080  # about 100 mm x 75 mm
    write_unlabelled(folder / "open", patients[2], huge)
    speck = patients[3].volume.hu.copy()
    speck[12, 48, 25] = 2095  # one voxel, 5.4 mm
    write_unlabelled(folder / "open", patients[3], speck)
    write_luna16(folder / "luna16", [_painted(draw(7), 70)])
    write_msd(folder / "msd", [_painted(draw(8), 99)])


def _painted(patient, percent):
    object.__setattr__(patient.volume, "hu", paint(patient, percent))
    return patient


def boxes(mask):
    """First and last slice of a mask."""
    shown = np.flatnonzero(mask.any(axis=(1, 2)))
    return int(shown[0]), int(shown[-1])
