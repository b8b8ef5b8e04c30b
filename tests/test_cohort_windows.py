"""Laws of nodule windows: what surrounds a nodule, its label, and LIDC's slices in PNG."""

import numpy as np
import pytest
from cohort_toys import votes_of, write_slices
from PIL import Image

from lungsynth.cohort.lidc_nodules import ASSUMED_SPACING_MM, nodule_folders, read_slices
from lungsynth.cohort.patches import IGNORED, NODULE, WINDOW_PX, cut_window, reader_label
from lungsynth.errors import InputError


def test_two_readers_make_a_nodule_and_one_alone_nothing_sure():
    votes = votes_of(6, 6, 9)
    label = reader_label(votes)
    assert label[0, 60, 70] == NODULE
    assert label[0, 60, 70 + 8] == 0, "one reader beside what two agree on"
    assert label[1, 60, 70] == IGNORED, "one reader where no two agree"
    assert set(np.unique(label)) == {0, NODULE, IGNORED}


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7), (0.5, 0.9)])
def test_a_window_is_centred_on_its_nodule_in_all_slices(spacing_mm):
    votes = votes_of(6, 6)
    hu = np.where(votes > 0, 30, -850).astype(np.int16)
    window = cut_window(
        hu,
        reader_label(votes),
        spacing_mm=spacing_mm,
        z_mm=np.array([0.0, 2.5]),
        nodule=votes >= 2,
        votes=votes,
        readers=votes.clip(max=1),
    )
    assert window.hu.shape == window.label.shape == window.votes.shape == (2, WINDOW_PX, WINDOW_PX)
    assert window.largest == 0
    centre = np.argwhere(window.label[0] == NODULE).mean(axis=0)
    assert np.abs(centre - (WINDOW_PX - 1) / 2).max() < 0.6
    area_mm2 = (window.label[0] == NODULE).sum() * 0.7**2
    assert area_mm2 == pytest.approx((votes[0] >= 2).sum() * np.prod(spacing_mm), rel=0.15)
    assert (window.label[:, 0] == IGNORED).all(), "the source ends there"
    assert window.readers.max() == 1


def test_slices_in_png_become_a_nodule_with_its_readers(tmp_path):
    write_slices(tmp_path, votes_of(6, 6, 9))
    table = tmp_path / "index.csv"
    table.write_text(
        "patient,nodule,slice,pixel_spacing_mm,slice_spacing_mm\nLIDC-IDRI-0001,0,0,0.8,1.25\n", encoding="utf-8"
    )
    (nodule,) = read_slices(nodule_folders(tmp_path), tables=[table])
    assert (nodule.row.nodule_id, nodule.row.patient_id) == ("LIDC-IDRI-0001_n00", "LIDC-IDRI-0001")
    assert nodule.row.votes == 2
    assert nodule.row.diameter_mm == pytest.approx(12 * 0.8, rel=0.1)
    assert not nodule.notes
    window = nodule.patches.window
    assert window.z_mm.tolist() == [0, 1.25]
    assert set(np.unique(window.votes)) == {0, 1, 3}
    assert set(np.unique(window.readers)) >= {0, 0b111}


def test_a_spacing_that_nobody_tells_is_assumed_and_said(tmp_path):
    write_slices(tmp_path, votes_of(6, 6))
    (nodule,) = read_slices(nodule_folders(tmp_path))
    assert nodule.row.diameter_mm == pytest.approx(12 * ASSUMED_SPACING_MM, rel=0.1)
    assert "give an index.csv" in nodule.notes[0]


def test_a_mask_of_another_shape_is_refused(tmp_path):
    folder = write_slices(tmp_path, votes_of(6, 6))
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "mask-1" / "slice-0.png")
    with pytest.raises(InputError, match=r"mask-1/slice-0\.png: a mask has its image's shape"):
        list(read_slices(nodule_folders(tmp_path)))
