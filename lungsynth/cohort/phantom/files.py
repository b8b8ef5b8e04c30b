"""Phantom patients as files, in the layouts of public collections, so that every reader has something to read.

- LUNA16: `subset0/<series>.mhd` and `.raw`, `annotations.csv`, `seg-lungs-LUNA16/<series>.mhd` (3 and 4 are the lungs,
  5 the trachea, as in LUNA16), and `patients.csv`, which says whose series it is.
- LIDC-IDRI: `<patient>/<study>/<series>/*.dcm` and the four readers' XML beside them.
- Medical Segmentation Decathlon: `imagesTr/`, `labelsTr/` (1 is nodule) and `dataset.json`.

The same patients give the same bytes. Identifiers follow from the seed.

A reader's contour in the XML runs along the outermost pixels of the nodule, which `lungsynth.ct.lidc` takes for nodule:
contour and what it encloses are the mask. The first two of the four readers draw the true mask, the third a larger one,
the fourth a smaller one and only where three slices show the nodule; two votes are the truth.
"""

import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from lungsynth.cohort.phantom.nodules import NoduleSpec, Texture
from lungsynth.cohort.phantom.patient import PhantomNodule, PhantomPatient, draw_patient
from lungsynth.ct.volume import Volume
from lungsynth.ct.write import write_annotations, write_nifti
from lungsynth.errors import InputError
from lungsynth.geometry import voxel_to_lps
from lungsynth.io.atomic import write_bytes, write_json

__all__ = [
    "edge_contour",
    "lidc_xml",
    "make_phantom_cohort",
    "series_uid",
    "write_dicom",
    "write_luna16",
    "write_msd",
]

_RESCALE_INTERCEPT = -1024
_LUNA16_LUNGS = (3, 4)  # at the lower and the higher column
_LUNA16_TRACHEA = 5

_SAME_IN_ALL_SLICES = {
    "SOPClassUID": CTImageStorage, "ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "SyntheticData": "YES",
    "Modality": "CT", "Manufacturer": "lungsynth phantom", "ConvolutionKernel": "PHANTOM", "KVP": "120",
    "StudyDate": "20000101", "SeriesDate": "20000101", "StudyTime": "000000", "StudyID": "1", "SeriesNumber": 1,
    "AcquisitionNumber": 1, "AccessionNumber": "", "ReferringPhysicianName": "", "PatientBirthDate": "",
    "PatientSex": "", "PatientPosition": "HFS", "PositionReferenceIndicator": "",
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1,
    "RescaleSlope": 1, "RescaleIntercept": _RESCALE_INTERCEPT, "RescaleType": "HU",
}  # fmt: skip


def series_uid(patient: PhantomPatient) -> str:
    """SeriesInstanceUID of a patient's scan."""
    return _uid(patient, "series")


def write_luna16(out: Path, patients: Sequence[PhantomPatient]) -> None:
    """Writes patients in LUNA16's layout (see the module); `out` is the collection's folder."""
    rows, owners = [], ["seriesuid,patient_id"]
    for patient in patients:
        uid = series_uid(patient)
        _write_metaimage(out / "subset0" / f"{uid}.mhd", patient.volume.hu, patient.volume)
        _write_metaimage(out / "seg-lungs-LUNA16" / f"{uid}.mhd", _luna16_lungs(patient), patient.volume)
        rows += [(uid, *nodule.centre_lps_mm, nodule.diameter_mm) for nodule in patient.nodules]
        owners.append(f"{uid},{patient.volume.patient_id}")
    write_annotations(out / "annotations.csv", rows)
    write_bytes(out / "patients.csv", ("\n".join(owners) + "\n").encode())


def write_dicom(out: Path, patient: PhantomPatient) -> Path:
    """Writes a patient in LIDC-IDRI's layout (see the module).

    Args:
        out: the collection's folder.
        patient: drawn by `draw_patient`.

    Returns:
        The folder of the series.
    """
    volume = patient.volume
    folder = out / volume.patient_id / _uid(patient, "study") / series_uid(patient)
    sop_uids = [_uid(patient, f"slice {index}") for index in range(len(volume.hu))]
    for index in range(len(volume.hu)):
        number = len(volume.hu) - index  # LIDC numbers its files from the top
        content = BytesIO()
        dataset = _dicom_slice(patient, index, number=number, sop_uid=sop_uids[index])
        dataset.save_as(content, enforce_file_format=True)
        write_bytes(folder / f"1-{number:03d}.dcm", content.getvalue())
    xml = lidc_xml(patient, study_uid=_uid(patient, "study"), series_uid=series_uid(patient), sop_uids=sop_uids)
    write_bytes(folder / f"{patient.seed:03d}.xml", xml)
    return folder


def write_msd(out: Path, patients: Sequence[PhantomPatient]) -> None:
    """Writes patients in the layout of the Medical Segmentation Decathlon (see the module)."""
    training = []
    for patient in patients:
        name = f"{patient.volume.patient_id.lower()}.nii.gz"
        write_nifti(out / "imagesTr" / name, patient.volume, descrip="phantom: lungsynth")
        write_nifti(out / "labelsTr" / name, patient.nodule_mask, patient.volume.affine, descrip="phantom: lungsynth")
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "Phantom",
        "description": "Procedural thorax: no patient's data",
        "licence": "Apache-2.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "cancer"},
        "numTraining": len(training),
        "numTest": 0,
        "training": training,
        "test": [],
    }
    write_json(out / "dataset.json", content, indent=2)


def make_phantom_cohort(
    out: Path, *, patients: int = 8, seed: int = 0, size_px: int = 128, slices: int = 40, slice_spacing_mm: float = 5.0
) -> None:
    """Draws patients and writes them in turn as LIDC-IDRI, LUNA16 and Decathlon, in folders of these layouts.

    Each has two nodules of different texture, every fourth of them on the pleura; from two LIDC-IDRI patients on (four
    in all) these alone hold the three textures. Fewer than three patients leave layouts out.

    Args:
        out: gets `phantom-lidc`, `phantom-luna16` and `phantom-msd`.
        patients: how many.
        seed: of the first patient; the others count on from `1000 * seed`.
        size_px: see `draw_patient`, as are `slices` and `slice_spacing_mm`.

    Raises:
        InputError: when `patients` is below one, or the grid is too small.
    """
    if patients < 1:
        raise InputError(f"A phantom cohort needs at least one patient, got {patients}.")
    luna16, msd = [], []
    for number in range(patients):
        first = 1000 * seed + number
        specs = _cohort_nodules(number, height_mm=slices * slice_spacing_mm)
        patient = draw_patient(first, size_px=size_px, slices=slices, slice_spacing_mm=slice_spacing_mm, nodules=specs)
        if number % 3 == 1:
            luna16.append(patient)
        elif number % 3 == 2:
            msd.append(patient)
        else:
            write_dicom(out / "phantom-lidc", patient)
    if luna16:
        write_luna16(out / "phantom-luna16", luna16)
    if msd:
        write_msd(out / "phantom-msd", msd)


def _cohort_nodules(number: int, *, height_mm: float) -> list[NoduleSpec]:
    textures: tuple[Texture, ...] = ("solid", "part_solid", "ground_glass")
    largest_mm = float(np.clip(height_mm / 3, 8, 24))
    turn = number // 3
    return [
        NoduleSpec(
            texture_class=textures[(turn + k) % 3],
            diameter_mm=8 + (largest_mm - 8) * ((0.38 * number + 0.55 * k) % 1.0),
            juxtapleural=(number + k) % 4 == 1,
        )
        for k in range(2)
    ]


def _uid(patient: PhantomPatient, what: str) -> UID:
    volume = patient.volume
    grid = "x".join(str(size) for size in volume.hu.shape)
    return generate_uid(entropy_srcs=[volume.patient_id, grid, f"{volume.spacing_mm[0]:.3f}", what])


def _write_metaimage(path: Path, array: np.ndarray, volume: Volume) -> None:
    """The data file first, then the header that makes it a volume, so that no header stands without its data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    depth_mm, row_mm, column_mm = volume.spacing_mm
    image.SetSpacing((column_mm, row_mm, depth_mm))
    image.SetOrigin([float(value) for value in voxel_to_lps(volume.affine, np.zeros(3))])
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        sitk.WriteImage(image, str(Path(scratch) / path.name), useCompression=False)
        for name in (f"{path.stem}.raw", path.name):
            (Path(scratch) / name).replace(path.with_name(name))


def _luna16_lungs(patient: PhantomPatient) -> np.ndarray:
    """Lungs as LUNA16 marks them, told apart by the midline of the body."""
    lung = patient.lung_mask == 1
    columns = np.arange(lung.shape[2])
    middle = columns[lung.any(axis=(0, 1))].mean()
    other = np.where(patient.airway_mask == 1, _LUNA16_TRACHEA, 0)
    return np.where(lung, np.where(columns < middle, *_LUNA16_LUNGS), other).astype(np.uint8)


def _dicom_slice(patient: PhantomPatient, index: int, *, number: int, sop_uid: UID) -> Dataset:
    volume = patient.volume
    depth_mm, row_mm, column_mm = (round(value, 6) for value in volume.spacing_mm)
    position = [round(float(value), 6) for value in voxel_to_lps(volume.affine, np.array([index, 0, 0]))]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = sop_uid
    for keyword, value in _SAME_IN_ALL_SLICES.items():
        setattr(dataset, keyword, value)
    dataset.SOPInstanceUID = sop_uid
    dataset.PatientName = dataset.PatientID = volume.patient_id
    dataset.SliceThickness = dataset.SpacingBetweenSlices = depth_mm
    dataset.StudyInstanceUID = _uid(patient, "study")
    dataset.SeriesInstanceUID = series_uid(patient)
    dataset.FrameOfReferenceUID = _uid(patient, "frame")
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = position
    dataset.SliceLocation = position[2]
    dataset.Rows, dataset.Columns = volume.hu.shape[1:]
    dataset.PixelSpacing = [row_mm, column_mm]
    dataset.PixelData = (volume.hu[index] - np.int16(_RESCALE_INTERCEPT)).astype("<i2").tobytes()
    return dataset


_READERS = 4
_TEXTURE_RATINGS = {"solid": (5, 5, 4, 5), "part_solid": (3, 3, 3, 2), "ground_glass": (1, 1, 2, 1)}
_FLAT_CROSS = ndimage.generate_binary_structure(2, 1)[None]
_CLOCKWISE = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))  # (row, column)


def lidc_xml(patient: PhantomPatient, *, study_uid: str, series_uid: str, sop_uids: Sequence[str]) -> bytes:
    """Four readings of a patient's nodules; each reading also marks a nodule below 3 mm and a non-nodule.

    Args:
        patient: whose nodules are read.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        sop_uids: SOPInstanceUID of each slice of the volume, inferior to superior.
    """
    root = ElementTree.Element("LidcReadMessage", {"uid": f"{series_uid}.0", "xmlns": "http://www.nih.gov"})
    header = ElementTree.SubElement(root, "ResponseHeader")
    _text(header, Version="1.8.1", TaskDescription="Second unblinded read", SeriesInstanceUid=series_uid)
    _text(header, ResponseDescription="1 - Reading complete", StudyInstanceUID=study_uid)
    slice_z_mm = voxel_to_lps(patient.volume.affine, np.eye(3)[:1] * np.arange(len(sop_uids))[:, None])[:, 2]
    places = [(f"{z:.6f}", uid) for z, uid in zip(slice_z_mm, sop_uids, strict=True)]
    small, other = _marks(patient)
    for reader in range(_READERS):
        session = ElementTree.SubElement(root, "readingSession")
        _text(session, annotationVersion="3.12", servicingRadiologistID=f"phantom-{reader}")
        for number, nodule in enumerate(patient.nodules):
            _add_nodule(session, nodule, reader, name=f"Nodule {number + 1:03d}", places=places, seed=patient.seed)
        tiny = ElementTree.SubElement(session, "unblindedReadNodule")
        _text(tiny, noduleID=f"Small {reader}")
        _add_roi(tiny, places[small[0]], [(small[1], small[2])])
        non_nodule = ElementTree.SubElement(session, "nonNodule")
        _text(non_nodule, nonNoduleID="Non-nodule 001", imageZposition=places[other[0]][0])
        _text(non_nodule, imageSOP_UID=places[other[0]][1])
        _text(ElementTree.SubElement(non_nodule, "locus"), xCoord=str(other[2]), yCoord=str(other[1]))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True) + b"\n"


def edge_contour(mask: np.ndarray) -> list[tuple[int, int]]:
    """Traces the outermost pixels of a mask by Moore's neighbours, clockwise, the first one repeated at the end.

    Args:
        mask: bool (height, width), one 8-connected piece.

    Returns:
        (row, column) of the pixels.
    """
    padded = np.pad(mask, 1)
    row, column = (int(i) for i in np.argwhere(padded)[0])
    start, first_turn, turn, contour = (row, column), -1, 7, [(row - 1, column - 1)]
    if mask.sum() == 1:
        return 2 * contour
    while True:
        while not padded[row + _CLOCKWISE[turn][0], column + _CLOCKWISE[turn][1]]:
            turn = (turn + 1) % 8
        if (row, column) == start:
            if turn == first_turn:
                return contour
            first_turn = turn if first_turn < 0 else first_turn
        row, column = row + _CLOCKWISE[turn][0], column + _CLOCKWISE[turn][1]
        contour.append((row - 1, column - 1))
        turn = (turn + (6 if turn % 2 else 7)) % 8  # go on after the last pixel known to be outside


def _text(parent: ElementTree.Element, **values: str) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = value


def _marks(patient: PhantomPatient) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Two places in the lung off the nodules, as (slice, row, column)."""
    free = np.argwhere((patient.lung_mask == 1) & (patient.nodule_mask == 0))
    chosen = free[np.random.default_rng([patient.seed, 3]).integers(0, len(free), 2)]
    (a, b, c), (d, e, f) = (tuple(int(i) for i in place) for place in chosen)
    return (a, b, c), (d, e, f)


def _add_nodule(
    session: ElementTree.Element, nodule: PhantomNodule, reader: int, *, name: str,
    places: list[tuple[str, str]], seed: int,
) -> None:  # fmt: skip
    drawn = _drawn_by(reader, nodule.mask.astype(bool))
    planes = np.flatnonzero(drawn.any(axis=(1, 2)))
    if not len(planes):
        return
    entry = ElementTree.SubElement(session, "unblindedReadNodule")
    _text(entry, noduleID=f"{name} of reader {reader}")
    _text(ElementTree.SubElement(entry, "characteristics"), **_ratings(nodule, reader, seed))
    for index in planes:
        _add_roi(entry, places[index], edge_contour(drawn[index]))


def _drawn_by(reader: int, mask: np.ndarray) -> np.ndarray:
    if reader == 2:
        return ndimage.binary_dilation(mask, _FLAT_CROSS)
    if reader == 3:
        return _solid_core(mask) if mask.any(axis=(1, 2)).sum() >= 3 else np.zeros_like(mask)
    return mask


def _solid_core(mask: np.ndarray) -> np.ndarray:
    """The largest piece in each slice of the mask less its outermost pixels."""
    core = ndimage.binary_erosion(mask, _FLAT_CROSS)
    for index in np.flatnonzero(core.any(axis=(1, 2))):
        pieces, count = ndimage.label(core[index])
        sizes = ndimage.sum_labels(core[index], pieces, range(1, count + 1))
        core[index] &= pieces == 1 + int(np.argmax(sizes))
    return core


def _ratings(nodule: PhantomNodule, reader: int, seed: int) -> dict[str, str]:
    """Ratings that go with size and texture, and that readers do not quite agree on."""
    rng = np.random.default_rng([seed, 4, reader, int(nodule.mask.sum())])
    size = int(np.clip(round(nodule.diameter_mm / 6), 1, 4))

    def near(value: int) -> str:
        return str(int(np.clip(value + rng.integers(-1, 2), 1, 5)))

    return {
        "subtlety": near(2 + size), "internalStructure": "1", "calcification": "6", "sphericity": near(4),
        "margin": near(4), "lobulation": near(2), "spiculation": near(size), "texture":
        str(_TEXTURE_RATINGS[nodule.texture_class][reader]), "malignancy": near(size + 1),
    }  # fmt: skip


def _add_roi(parent: ElementTree.Element, place: tuple[str, str], contour: Sequence[tuple[int, int]]) -> None:
    roi = ElementTree.SubElement(parent, "roi")
    _text(roi, imageZposition=place[0], imageSOP_UID=place[1], inclusion="TRUE")
    for row, column in contour:
        _text(ElementTree.SubElement(roi, "edgeMap"), xCoord=str(column), yCoord=str(row))
