"""Laws of lung_seg on whole scans: grids, where lungs can be, fused inference, probabilities, candidates."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundles" / "lung_seg_bundle"
sys.path.insert(0, str(BUNDLE))

from lung_seg.candidates import CandidateFinder
from lung_seg.fused_inference import fuse, join
from lung_seg.grid import Box, covered, resample, resample_part, source_box
from lung_seg.inferer import Segmenter
from lung_seg.network import DenseUNet
from lung_seg.outputs import table_rows
from lung_seg.pleura import pleural_distances
from lung_seg.region import lung_boxes
from lung_seg_toys import chest, sphere, tiny_network
from monai.inferers import SlidingWindowInferer


@pytest.mark.parametrize("shape", [(23, 31), (40, 52), (90, 70)])
def test_a_part_is_resampled_as_in_the_whole(shape):
    whole = torch.randn(2, 1, 40, 52, generator=torch.Generator().manual_seed(0))
    expected = resample(whole, shape)
    part = Box(rows=(3, 19), columns=(5, 30))
    held = source_box(part, shape, (40, 52))
    cut = whole[(..., *held.index)]
    got = resample_part(cut, shape, part, held=held, extent=(40, 52))
    torch.testing.assert_close(got, expected[(..., *part.index)], atol=1e-4, rtol=0)
    known = covered(held, (40, 52), shape)
    assert known.rows[0] <= part.rows[0]
    assert known.columns[1] >= part.columns[1]


def test_a_box_without_pixels_cannot_be():
    with pytest.raises(ValueError, match=r"0 <= start < stop, got rows \(3, 3\)"):
        Box(rows=(3, 3), columns=(0, 1))


def test_boxes_hold_the_lungs_and_leave_out_the_rest():
    hu, spacing = chest(), (5.0, 2.5, 2.5)
    boxes = lung_boxes(torch.from_numpy(hu), spacing)
    lung = hu == -850
    assert boxes[0] is None
    for plane, box in zip(lung[4:20], boxes[4:20], strict=True):
        outside = plane.copy()
        outside[box.index] = False
        assert not outside.any()
        height, width = (stop - start for start, stop in (box.rows, box.columns))
        assert height * width < 0.6 * plane.size


def test_a_collapsed_lung_stays_in_the_box():
    hu = chest()
    hu[:, :, :60][hu[:, :, :60] == -850] = 30
    boxes = lung_boxes(torch.from_numpy(hu), (5.0, 2.5, 2.5))
    assert boxes[10].columns[0] <= 60 - (60 + 45) / 2.5
    assert boxes[10].columns[1] >= 60 + (60 + 45) / 2.5 - 1


@pytest.mark.parametrize(
    ("hu", "spacing"),
    [(chest()[:, :64, :64], (5.0, 0.7, 0.7)), (np.full((2, 120, 120), -1000, np.int16), (5.0, 2.5, 2.5))],
)
def test_what_is_no_chest_is_taken_whole(hu, spacing):
    boxes = lung_boxes(torch.from_numpy(np.ascontiguousarray(hu)), spacing)
    assert boxes == [Box.whole(hu.shape[1:])] * len(hu)


@pytest.mark.parametrize("widths", [(8, 8), (4, 2), (3, 5)])
def test_join_is_cat(widths):
    parts = [torch.randn(2, width, 5, 7).to(torch.bfloat16) for width in widths]
    parts = [part.to(memory_format=torch.channels_last) for part in parts]
    joined = join(parts)
    assert torch.equal(joined, torch.cat(parts, dim=1))
    assert joined.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(64, 96), (37, 51), (3, 2)])
def test_the_lean_network_equals_the_network(shape):
    torch.manual_seed(0)
    network = DenseUNet().train()
    network(torch.randn(4, 3, 64, 64))  # so that batch norms have something to fold
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.randn(2, 3, *shape)
    torch.testing.assert_close(fuse(network, amp=False)(image), network(image), atol=1e-5, rtol=1e-4)
    rough = fuse(network, amp=True)(image).float()
    assert (torch.sigmoid(rough) - torch.sigmoid(network(image))).abs().max() < 0.02
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    other = torch.nn.Identity()
    assert fuse(other, amp=False) is other


class Brightness(torch.nn.Module):
    """Says lung where it is bright, nodule nowhere."""

    def forward(self, image):
        own = image[:, 1:2]
        return torch.cat([50 * own, -50 * torch.ones_like(own)], dim=1)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (0.6, 0.7), (1.7, 1.4)])
def test_segmenter_answers_on_the_images_own_grid(spacing_mm):
    hu = np.full((61, 83), -1000, dtype=np.int16)
    hu[20:40, 30:60] = 400
    maps = Segmenter(Brightness(), spacing_mm=1.0)(hu, spacing_mm)
    assert {name: (m.shape, m.dtype) for name, m in maps.items()} == {
        "lung": (hu.shape, np.float32),
        "nodule": (hu.shape, np.float32),
    }
    agrees = (maps["lung"] > 0.5) == (hu > 0)
    edge = np.zeros_like(agrees)
    edge[18:42, 28:62] = True
    edge[22:38, 32:58] = False  # only pixels beside the edge may differ
    assert agrees[~edge].all()
    assert agrees[edge].mean() > 0.7
    assert (maps["nodule"] < 1e-6).all()


def test_segmenter_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"one slice \(H, W\) in HU, got shape \(1, 4, 4\)"):
        Segmenter(Brightness())(np.zeros((1, 4, 4), np.int16), (1.0, 1.0))


def test_amp_and_crop_change_little():
    """The tolerance that docs/README.md of the bundle states, on a chest, with the shipped weights.

    What cropping changes depends on how far a network sees; random weights see as far as trained ones.
    """
    torch.manual_seed(1)
    plain, shipped = DenseUNet().eval(), DenseUNet().eval()
    shipped.load_state_dict(torch.load(BUNDLE / "models" / "model.pt"))
    hu = torch.from_numpy(chest(depth=12))
    spacing, lung = (10.0, 2.5, 2.5), (hu == -850).expand(2, -1, -1, -1)

    def maps(network, **settings):
        return Segmenter(network, spacing_mm=1.4, **settings).volume(hu, spacing).float()

    cropped = maps(plain, amp=False)
    assert (cropped - maps(plain, amp=False, crop=False)).abs()[lung].max() < 0.01
    assert not cropped[:, 0].any()
    exact, fast = (maps(shipped, amp=amp, crop=False) for amp in (False, True))
    assert (fast - exact).abs()[lung].max() < 0.15
    assert ((fast >= 0.5) != (exact >= 0.5))[lung].float().mean() < 0.005


def test_windows_equal_the_whole_inside():
    network, hu = tiny_network(), torch.from_numpy(chest(depth=1))
    windows = SlidingWindowInferer(roi_size=(96, 96), overlap=0.5, padding_mode="replicate")
    settings = {"spacing_mm": 1.25, "amp": False, "crop": False}
    whole = Segmenter(network, **settings).volume(hu, (5.0, 2.5, 2.5))
    parts = Segmenter(network, inferer=windows, **settings).volume(hu, (5.0, 2.5, 2.5))
    difference = (whole - parts).float().abs()
    assert difference.median() < 1e-3
    assert difference.max() < 0.1  # at the windows' edges
    fitting = Segmenter(network, inferer=SlidingWindowInferer(roi_size=(512, 512)), **settings)
    assert torch.equal(fitting.volume(hu, (5.0, 2.5, 2.5)), whole)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.8)])
@pytest.mark.parametrize("diameter_mm", [5.0, 9.0, 20.0])
def test_a_ball_comes_back_with_its_place_and_size(spacing_mm, diameter_mm):
    shape = tuple(int(30 / mm) for mm in spacing_mm)
    centre = np.array([size * 0.45 for size in shape])
    nodule = 0.9 * sphere(shape, centre, diameter_mm, spacing_mm)
    (found,) = CandidateFinder()(nodule, np.ones(shape), spacing_mm)
    assert found[:3] == pytest.approx(centre, abs=0.35)
    assert found[3] == pytest.approx(diameter_mm, rel=0.12)
    assert found[4] == pytest.approx(0.9, abs=0.08)


def test_a_faint_nodule_has_the_size_of_a_clear_one():
    nodule = sphere((30, 40, 40), (15, 20, 20), 12.0, (1, 1, 1))
    clear, faint = (CandidateFinder()(height * nodule, nodule, (1, 1, 1))[0] for height in (1.0, 0.3))
    assert faint[3] == pytest.approx(clear[3])
    assert faint[4] == pytest.approx(0.3, abs=1e-3)


def test_a_single_slice_has_discs():
    nodule = sphere((1, 40, 40), (0, 20, 15), 10.0, (1, 0.7, 0.7))
    (found,) = CandidateFinder()(nodule, nodule, (3.0, 0.7, 0.7))
    assert found[:3] == pytest.approx([0, 20, 15], abs=0.1)
    assert found[3] == pytest.approx(10.0, rel=0.08)


def test_two_balls_that_touch_faintly_stay_two():
    shape, spacing = (24, 24, 40), (1.0, 1.0, 1.0)
    centres = [(12, 12, 12), (12, 12, 27)]
    nodule = np.maximum(*(sphere(shape, centre, 10.0, spacing) for centre in centres))
    bridge = np.zeros(shape, dtype=np.float32)
    bridge[11:14, 11:14, 12:28] = 0.25
    found = CandidateFinder(threshold=0.1)(np.maximum(0.9 * nodule, bridge), np.ones(shape), spacing)
    assert sorted(found[:, 2]) == pytest.approx([12, 27], abs=0.3)
    assert found[:, 3] == pytest.approx([10, 10], rel=0.1)


def test_one_ball_with_a_noisy_top_stays_one():
    nodule = sphere((24, 24, 24), (12, 12, 12), 14.0, (1, 1, 1))
    noisy = nodule * np.random.default_rng(0).uniform(0.8, 0.95, nodule.shape)
    assert len(CandidateFinder()(noisy, nodule, (1, 1, 1))) == 1


def test_small_and_outside_candidates_are_left_out_and_the_pleura_is_not():
    shape, spacing = (20, 220, 220), (2.0, 1.0, 1.0)
    lung = np.zeros(shape, dtype=np.float32)
    lung[:, 60:160, 40:120] = 1
    spheres = {"inside": (10, 100, 80), "at the pleura": (10, 100, 122), "outside": (10, 100, 160)}
    nodule = np.max([sphere(shape, centre, 10.0, spacing) for centre in spheres.values()], axis=0)
    nodule[3, 70, 50] = 1  # one voxel
    found = CandidateFinder()(nodule, lung, spacing)
    assert sorted(found[:, 2]) == pytest.approx([80, 122], abs=0.3)
    crop = CandidateFinder()(nodule[:, 80:120, 140:180], lung[:, 80:120, 140:180], spacing)
    assert crop[:, 1:3] == pytest.approx(np.array([[20, 20]]), abs=0.3), "a crop need not show lung"


def test_candidates_come_by_probability_and_none_are_an_empty_table():
    shape = (12, 40, 40)
    nodule = 0.4 * sphere(shape, (6, 10, 10), 8.0, (1, 1, 1)) + 0.9 * sphere(shape, (6, 28, 28), 8.0, (1, 1, 1))
    found = CandidateFinder()(nodule, np.ones(shape), (1, 1, 1))
    assert found[:, 4] == pytest.approx([0.9, 0.4], abs=0.02)
    nothing = CandidateFinder()(np.zeros(shape), np.ones(shape), (1, 1, 1))
    assert (nothing.shape, nothing.dtype) == ((0, 5), np.float32)
    with pytest.raises(ValueError, match=r"one shape, got \(12, 40, 40\) and \(1, 40, 40\)"):
        CandidateFinder()(nodule, nodule[:1], (1, 1, 1))
    with pytest.raises(ValueError, match=r"threshold lies in \(0, 1\)"):
        CandidateFinder(threshold=0)


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, -1, 1), (-1, 1, -1)])
def test_rows_are_lps_millimetres(signs):
    affine = np.zeros((4, 4))  # (row, column, slice) -> RAS, rows run along y, columns along x
    affine[[1, 0, 2], [0, 1, 2]] = np.array([0.7, 0.8, 2.5]) * np.array(signs)
    affine[:, 3] = [10, 20, -30, 1]
    (row,) = table_rows("a", np.array([[4, 7, 9, 6.0, 0.5]]), affine, [3.0])
    x, y, z = affine[:3, :3] @ [7, 9, 4] + affine[:3, 3]
    assert [row[key] for key in ("x_mm", "y_mm", "z_mm")] == pytest.approx([-x, -y, z])
    assert (row["diameter_mm"], row["probability"], row["pleura_distance_mm"]) == (6.0, 0.5, 3.0)


def test_pleural_distance_is_to_the_edge_and_not_to_a_vessel():
    lung = np.zeros((20, 120, 120), dtype=np.float32)
    lung[:, 20:100, 20:100] = 1
    lung[:, 58:62, 48:52] = 0  # a vessel
    lung[:, 60, 20:50] = 0  # and one that reaches the edge
    places = np.array([[10, 60, 35], [10, 30, 60], [10, 98, 60], [10, 110, 60]])
    found = pleural_distances(lung, places, (2.0, 0.8, 0.8))
    assert found == pytest.approx([15.5 * 0.8, 10.5 * 0.8, 1.5 * 0.8, 0], abs=1.2)
    assert not pleural_distances(np.zeros_like(lung), places, (2.0, 0.8, 0.8)).any()


@pytest.mark.parametrize("slice_mm", [0.5, 0.7, 1.0, 2.5])
def test_a_single_slice_has_distances_whatever_its_thickness(slice_mm):
    """The grid of distances takes every second slice of thin ones: of a stack of one, that is the one there is."""
    rows, columns = np.mgrid[:101, :101]
    lung = (np.hypot(rows - 50, columns - 50) <= 40)[None].astype(float)
    found = pleural_distances(lung, np.array([[0, 50, 50], [0, 50, 20]]), (slice_mm, 1.0, 1.0))
    assert found == pytest.approx([40, 10], abs=3)
