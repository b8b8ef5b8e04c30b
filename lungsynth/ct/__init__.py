"""CT files in any layout that users bring, read into `Volume`; and the files that this project writes.

`find_series` looks into folders and zips; `read_volume`, `read_lung_mask`, `read_nodules` and `read_boxes` open what it
found.
"""

from lungsynth.ct.annotations import read_boxes, read_nodules
from lungsynth.ct.dicom import read_slice_frames
from lungsynth.ct.discover import Discovery, find_series
from lungsynth.ct.lidc import LidcReading, read_lidc_xml
from lungsynth.ct.luna16 import read_luna16_annotations
from lungsynth.ct.nodule import ReadNodule, nodules_from_mask
from lungsynth.ct.read import read_lung_mask, read_mask, read_volume
from lungsynth.ct.series import Annotations, NoduleSphere, Problem, SeriesFiles
from lungsynth.ct.voc import SliceBox, read_voc_boxes
from lungsynth.ct.volume import Volume, axial_affine, lps_to_voxel, voxel_to_lps
from lungsynth.ct.write import read_plane, write_annotations, write_atomically, write_nifti, write_plane

__all__ = [
    "Annotations",
    "Discovery",
    "LidcReading",
    "NoduleSphere",
    "Problem",
    "ReadNodule",
    "SeriesFiles",
    "SliceBox",
    "Volume",
    "axial_affine",
    "find_series",
    "lps_to_voxel",
    "nodules_from_mask",
    "read_boxes",
    "read_lidc_xml",
    "read_luna16_annotations",
    "read_lung_mask",
    "read_mask",
    "read_nodules",
    "read_plane",
    "read_slice_frames",
    "read_voc_boxes",
    "read_volume",
    "voxel_to_lps",
    "write_annotations",
    "write_atomically",
    "write_nifti",
    "write_plane",
]
