import numpy as np
import pytest
from ct_files import ORIGIN_MM, SHARED, SPACING_MM, dicom_files, make_volume, write_dicom

from lungsynth.ct.annotations import read_nodules, read_voc_boxes
from lungsynth.ct.dicom import read_slice_frames
from lungsynth.ct.discover import find_series
from lungsynth.ct.lidc import read_lidc_xml
from lungsynth.ct.read import read_mask, read_volume
from lungsynth.errors import InputError

RATINGS = "<characteristics><texture>{texture}</texture><internalStructure>1</internalStructure></characteristics>"


def square(low, high):
    """The outline of pixels low..high, as (x, y), in drawing order."""
    side = range(low, high)
    return [
        *((x, low) for x in side),
        *((high, y) for y in side),
        *((x, high) for x in range(high, low, -1)),
        *((low, y) for y in range(high, low, -1)),
    ]


def roi(points, index, *, include=True, uid=""):
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    z = ORIGIN_MM[2] + index * SPACING_MM[0]
    return (
        f"<roi><imageZposition>{z:.6f} </imageZposition><imageSOP_UID>{uid}</imageSOP_UID>"
        f"<inclusion>{str(include).upper()}</inclusion>{edges}</roi>"
    )


def nodule(*rois, texture=None):
    ratings = RATINGS.format(texture=texture) if texture is not None else ""
    return f"<unblindedReadNodule><noduleID>n</noduleID>{ratings}{''.join(rois)}</unblindedReadNodule>"


def non_nodule(x, y, index):
    z = ORIGIN_MM[2] + index * SPACING_MM[0]
    return (
        f"<nonNodule><nonNoduleID>1</nonNoduleID><imageZposition>{z}</imageZposition><imageSOP_UID>?</imageSOP_UID>"
        f"<locus><xCoord>{x}</xCoord><yCoord>{y}</yCoord></locus></nonNodule>"
    )


def write_xml(path, *sessions, series="1.2.3"):
    body = "".join(f"<readingSession>{session}</readingSession>" for session in sessions)
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
        f"<SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>{body}</LidcReadMessage>",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def volume():
    return make_volume(shape=(6, 24, 24))


def test_votes_ratings_points_and_holes(tmp_path, volume):
    first = nodule(roi(square(4, 10), 2), roi(square(5, 9), 3), roi(square(5, 9), 2, include=False), texture=5)
    second = nodule(roi(square(4, 10), 2), texture=2)
    small = nodule(roi([(20, 21)], 4))
    xml = write_xml(tmp_path / "r.xml", first + small, second + non_nodule(1, 2, 5), "", small)
    reading = read_lidc_xml(xml, volume)
    (found,) = reading.nodules
    assert reading.readers == 4
    assert found.readers == 2
    assert found.attributes == {"texture": 3.5, "internal_structure": 1.0}
    votes = found.full_votes(volume.hu.shape)
    expected = np.zeros(volume.hu.shape, np.uint8)
    expected[2, 4:11, 4:11] = 2  # the outline belongs to the nodule
    expected[2, 6:9, 6:9] = 1  # the first reader's hole, but for its outline
    expected[3, 5:10, 5:10] = 1
    np.testing.assert_array_equal(votes, expected)
    assert found.reader_diameter_mm == pytest.approx(np.hypot(6 * 0.7, 6 * 0.8))
    at_20_21_4 = np.add(ORIGIN_MM, [20 * 0.8, 21 * 0.7, 4 * 2.5])
    np.testing.assert_allclose(reading.small_nodules_lps_mm, [at_20_21_4, at_20_21_4])
    np.testing.assert_allclose(reading.non_nodules_lps_mm, [np.add(ORIGIN_MM, [0.8, 1.4, 12.5])])


def test_outlines_with_gaps_and_slivers_are_filled(tmp_path, volume):
    corners = nodule(roi([(4, 4), (10, 4), (10, 10), (4, 10)], 2))
    line = nodule(roi([(15, 20), (16, 20), (17, 20)], 2))
    reading = read_lidc_xml(write_xml(tmp_path / "r.xml", corners, line), volume)
    assert [int(found.votes.sum()) for found in reading.nodules] == [49, 3]


def test_neighbours_stay_apart_and_a_reader_votes_once(tmp_path, volume):
    two = nodule(roi(square(3, 7), 2)) + nodule(roi(square(14, 18), 2))
    one = nodule(roi(square(4, 8), 2))
    touching = nodule(roi(square(3, 7), 2)) + nodule(roi(square(5, 9), 2))
    apart = read_lidc_xml(write_xml(tmp_path / "a.xml", two, one), volume)
    assert [found.readers for found in apart.nodules] == [2, 1]
    alone = read_lidc_xml(write_xml(tmp_path / "b.xml", touching), volume)
    assert [found.readers for found in alone.nodules] == [1, 1]


def test_pieces_are_one_nodule_and_copies_one_mark(tmp_path, volume):
    whole = nodule(roi(square(3, 14), 2))
    pieces = nodule(roi(square(3, 7), 2)) + nodule(roi(square(9, 13), 2))
    (found,) = read_lidc_xml(write_xml(tmp_path / "a.xml", whole, pieces), volume).nodules
    assert (found.readers, int((found.votes == 2).sum())) == (2, 50)
    (found,) = read_lidc_xml(write_xml(tmp_path / "b.xml", whole * 600), volume).nodules
    assert found.readers == 1
    many = "".join(nodule(roi(square(x, x + 1), z)) for x in range(22) for z in range(6)) * 4
    sessions = [many.replace("<noduleID>n", f"<noduleID>{k}") for k in range(4)]
    with pytest.raises(InputError, match=r"c\.xml: holds 528 readings of nodules, more than 500"):
        read_lidc_xml(write_xml(tmp_path / "c.xml", *sessions), volume)


@pytest.mark.parametrize(("rating", "kept"), [("99", None), ("-3", None), ("NaN", None), ("5", 5.0)])
def test_ratings_outside_their_scale_are_left_out_and_said(tmp_path, volume, rating, kept):
    reading = read_lidc_xml(write_xml(tmp_path / "r.xml", nodule(roi(square(4, 8), 2), texture=rating)), volume)
    assert reading.nodules[0].attributes.get("texture") == kept
    assert bool(reading.notes) == (kept is None)


def test_contours_find_their_slice_by_uid(tmp_path, volume):
    paths = write_dicom(tmp_path / "ct", volume)
    files = dicom_files(paths)
    frames = read_slice_frames(files)
    uid = next(uid for uid, frame in frames.items() if frame.path == paths[4])
    xml = write_xml(tmp_path / "r.xml", nodule(roi(square(4, 8), 1, uid=uid)))
    (found,) = read_lidc_xml(xml, read_volume(files), frames).nodules
    assert found.offset == (4, 4, 4)


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (nodule(roi(square(4, 8), 9)), r"r\.xml: marks slice .* at z = -77.5 mm, which series 1\.2\.3 does not hold"),
        (nodule(roi(square(20, 30), 2)), r"marks slice .* does not hold"),
        (nodule("<roi><inclusion>TRUE</inclusion></roi>"), "no imageZposition in roi"),
        ("<nonNodule>", r"r\.xml: not readable as LIDC XML.*copy it again"),
    ],
)
def test_bad_readings_are_refused(tmp_path, volume, session, message):
    with pytest.raises(InputError, match=message):
        read_lidc_xml(write_xml(tmp_path / "r.xml", session), volume)


BOX = """<annotation><object><name>A</name><bndbox><xmin>3</xmin><ymin>5</ymin><xmax>7</xmax><ymax>6</ymax></bndbox>
</object></annotation>"""


def test_boxes_lie_on_their_slices(tmp_path, volume):
    files = dicom_files(write_dicom(tmp_path / "ct", volume))
    frames = read_slice_frames(files)
    uid = next(uid for uid, frame in frames.items() if frame.path == files.files[4])
    (tmp_path / f"{uid}.xml").write_text(BOX, encoding="utf-8")
    (box,) = read_voc_boxes([tmp_path / f"{uid}.xml"], read_volume(files), frames)
    assert (box.slice_index, box.row0, box.row1, box.column0, box.column1, box.name) == (4, 5, 7, 3, 8, "A")
    (tmp_path / "other.xml").write_text(BOX, encoding="utf-8")
    with pytest.raises(InputError, match=r"other\.xml: no slice of series 1\.2\.3 has this SOPInstanceUID"):
        read_voc_boxes([tmp_path / "other.xml"], volume, frames)
    (tmp_path / f"{uid}.xml").write_text(BOX.replace("<xmin>3</xmin>", ""), encoding="utf-8")
    with pytest.raises(InputError, match="not readable as Pascal-VOC XML"):
        read_voc_boxes([tmp_path / f"{uid}.xml"], volume, frames)


@pytest.mark.skipif(not SHARED.exists(), reason="development data")
def test_real_reading_agrees_with_the_derived_mask_and_table():
    with find_series(SHARED / "lidc-idri-0001-dicom") as found:
        (files,) = found.series
        volume = read_volume(files)
        (nodule,) = read_nodules(files, volume)
    derived = read_mask(SHARED / "lidc-idri-0001-dicom" / "LIDC-IDRI-0001_nodule_votes4.nii.gz", volume)
    box = tuple(slice(start, start + size) for start, size in zip(nodule.offset, nodule.votes.shape, strict=True))
    assert (derived[box] > 0).sum() == (derived > 0).sum()
    votes, derived = nodule.votes, derived[box]
    for level in (1, 2, 3, 4):
        ours, theirs = votes >= level, derived >= level
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.999
    (sphere,) = files.annotations.spheres
    diameter_mm = (6 / np.pi * (votes >= 2).sum() * np.prod(volume.spacing_mm)) ** (1 / 3)
    assert diameter_mm == pytest.approx(sphere.diameter_mm, abs=1e-3)
    np.testing.assert_allclose(nodule.centre_lps_mm, sphere.centre_lps_mm, atol=2e-3)
    assert nodule.readers == 4
    assert nodule.attributes["texture"] == 4.75
    assert nodule.reader_diameter_mm == pytest.approx(32.76, abs=0.01)
