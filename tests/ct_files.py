"""Small CT series as files, for the tests of `lungsynth.ct`."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lungsynth.ct.series import SeriesFiles
from lungsynth.ct.volume import Volume
from lungsynth.geometry import axial_affine

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SPACING_MM = (2.5, 0.7, 0.8)
ORIGIN_MM = (-30.0, -40.0, -100.0)


def make_volume(shape=(6, 12, 16), seed=0, series_id="1.2.3"):
    """Every voxel differs, so that a wrong flip shows."""
    hu = np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)
    affine = axial_affine(spacing_mm=SPACING_MM, origin_lps_mm=ORIGIN_MM)
    return Volume(hu=hu, affine=affine, series_id=series_id, patient_id="P1")


def make_slice(volume, index, *, slope=1, intercept=-1024):
    """One CT slice as a DICOM data set."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[volume.series_id, str(index)])
    ds = pydicom.Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID, ds.SeriesInstanceUID = "CT", volume.patient_id, volume.series_id
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.Rows, ds.Columns = volume.hu.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.ImagePositionPatient = [ORIGIN_MM[0], ORIGIN_MM[1], ORIGIN_MM[2] + index * SPACING_MM[0]]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [SPACING_MM[1], SPACING_MM[2]], SPACING_MM[0]
    ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    ds.PixelData = ((volume.hu[index].astype(np.int32) - intercept) // slope).astype(np.int16).tobytes()
    return ds


def write_dicom(folder, volume, edit=None, **settings):
    """Writes a series, file names in an order other than that of the slices; `edit(ds, index)` may change each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(len(volume.hu)):
        ds = make_slice(volume, index, **settings)
        if edit is not None:
            edit(ds, index)
        path = folder / f"{(index * 5) % len(volume.hu):03d}_{index}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def dicom_files(paths, series_id="1.2.3"):
    return SeriesFiles(kind="dicom", series_id=series_id, patient_id="P1", patient_known=True, files=tuple(paths))


def one_file(path, kind):
    return SeriesFiles(kind=kind, series_id="s", patient_id="s", patient_known=False, files=(path,))


def save_nifti(path, array_xyz, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_xyz, np.diag([-1.0, -1.0, 1.0, 1.0]) if affine is None else affine), path)
    return path
