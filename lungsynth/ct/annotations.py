"""What readers said about a series, in whatever form its files hold it, on the grid of its `Volume`."""

from lungsynth.ct.dicom import read_slice_frames
from lungsynth.ct.lidc import read_lidc_xml
from lungsynth.ct.nodule import ReadNodule, nodules_from_mask
from lungsynth.ct.read import read_mask
from lungsynth.ct.series import SeriesFiles
from lungsynth.ct.voc import SliceBox, read_voc_boxes
from lungsynth.ct.volume import Volume

__all__ = ["read_boxes", "read_nodules"]


def read_nodules(files: SeriesFiles, like: Volume) -> tuple[ReadNodule, ...]:
    """Nodules whose outline is known: from LIDC's readers, else from the nodule mask; empty where there is neither.

    Args:
        files: as `find_series` gives them.
        like: the same series, read.

    Raises:
        InputError: see `read_lidc_xml` and `read_mask`.
    """
    if files.annotations.lidc_xml is not None:
        frames = read_slice_frames(files) if files.kind == "dicom" else None
        return read_lidc_xml(files.annotations.lidc_xml, like, frames).nodules
    if files.nodule_mask is not None:
        return nodules_from_mask(read_mask(files.nodule_mask, like), like.affine)
    return ()


def read_boxes(files: SeriesFiles, like: Volume) -> tuple[SliceBox, ...]:
    """Pascal-VOC boxes of a DICOM series, in the order of its slices; empty where there are none.

    Raises:
        InputError: see `read_voc_boxes`.
    """
    if not files.annotations.voc_xml:
        return ()
    return read_voc_boxes(files.annotations.voc_xml, like, read_slice_frames(files))
