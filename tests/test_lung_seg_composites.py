"""Laws of lung_seg's composites: nodules go into lungs, their masks are exact, and the rest of the slice stays."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BUNDLE = Path(__file__).parents[1] / "bundles" / "lung_seg_bundle"
sys.path.insert(0, str(BUNDLE))

from lung_seg.common.clock import CpuClock
from lung_seg.composites import Insert, NoduleBank, RandOverlayNodules, blend

LUNG_HU, NODULE_HU = -850.0, 30.0


def disc(radius: float, *, offset: float = 0.0) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    return (torch.hypot(rows, columns - offset) < radius).float()


def insert_of(alpha: torch.Tensor) -> Insert:
    return Insert(alpha, alpha * NODULE_HU)


def lung_square(side: int = 96) -> dict[str, torch.Tensor]:
    label = torch.zeros(1, side, side, dtype=torch.uint8)
    label[:, 10:-10, 10:-10] = 1
    image = torch.where(label == 1, LUNG_HU, 40.0)
    return {"kind": "slice", "image": image, "label": label, "labelled": torch.tensor([1.0, 0.0])}


def write_nodule(path: Path, *, votes: int, radius: float = 6.0) -> Path:
    mask = disc(radius).numpy().astype(np.uint8)
    planes = np.stack([mask, 0 * mask])
    hu = np.where(planes, NODULE_HU, LUNG_HU).astype(np.int16)
    np.savez(path, hu=hu, alpha=planes.astype(np.float16), votes=votes * planes)
    return path


def test_only_the_nodule_changes():
    image, label = lung_square()["image"][0], lung_square()["label"][0]
    before = image.clone()
    alpha = disc(6.0) * 0.6
    blend(image, label, insert_of(alpha), row=40, column=50)
    changed = torch.zeros_like(label, dtype=torch.bool)
    changed[8:72, 18:82] = alpha > 0
    assert torch.equal(image[~changed], before[~changed])
    torch.testing.assert_close(image[changed], torch.full_like(image[changed], 0.6 * NODULE_HU + 0.4 * LUNG_HU))
    assert torch.equal(label == 2, changed)


def test_a_nodule_at_the_border_is_cut_off():
    image, label = lung_square()["image"][0], lung_square()["label"][0]
    blend(image, label, insert_of(disc(6.0)), row=0, column=95)
    assert (label[:6, -6:] == 2).any()
    assert (label == 2).sum() < disc(6.0).sum() / 2


def test_turning_keeps_hu_and_scales_the_area():
    small = insert_of(disc(8.0, offset=10.0))
    turned = small.turned(angle_rad=np.pi / 2, scale=1.5, mirrored=True)
    assert turned.mask.sum().item() == pytest.approx(2.25 * small.mask.sum().item(), rel=0.03)
    inside = turned.alpha > 0.99
    torch.testing.assert_close(
        turned.premultiplied[inside] / turned.alpha[inside], torch.full((int(inside.sum()),), 30.0)
    )
    rows, columns = (axis.float().mean().item() - 31.5 for axis in torch.nonzero(turned.mask, as_tuple=True))
    assert abs(columns) < 0.5  # the offset along columns has become one along rows
    assert abs(rows) == pytest.approx(15.0, abs=0.5)
    back = small.turned(angle_rad=0.0, scale=1.0, mirrored=False)
    torch.testing.assert_close(back.alpha, small.alpha)


def test_the_bank_keeps_what_two_readers_agree_on_and_no_end_caps(tmp_path):
    agreed, single = (write_nodule(tmp_path / f"{votes}.npz", votes=votes) for votes in (2, 1))
    random = np.random.RandomState(0)
    assert NoduleBank([single]).draw(random) is None
    drawn = NoduleBank([agreed, single]).draw(random)
    assert all(torch.equal(NoduleBank([agreed, single]).draw(random).alpha, drawn.alpha) for _ in range(4))
    with pytest.raises(ValueError, match=r"none\.npz: expected a nodule's npz with hu, alpha and votes"):
        NoduleBank([tmp_path / "none.npz"]).draw(random)
    with pytest.raises(ValueError, match="a weight for each of 2 nodules, got 1"):
        NoduleBank([agreed, single], weights=[1.0])


def test_the_bank_draws_by_weight(tmp_path):
    common, rare = (write_nodule(tmp_path / f"{name}.npz", votes=3) for name in ("common", "rare"))
    arrays = dict(np.load(rare))
    np.savez(rare, **{**arrays, "hu": arrays["hu"] - 500})
    bank, random = NoduleBank([common, rare], weights=[0.1, 1.9]), np.random.RandomState(0)
    lower = [(drawn.premultiplied[drawn.mask] < -200).all() for drawn in (bank.draw(random) for _ in range(40))]
    assert sum(lower) > 30


def test_nodules_are_put_into_lungs_without_drawn_nodules_only(tmp_path):
    bank = NoduleBank([write_nodule(tmp_path / "a.npz", votes=3)])
    insert = RandOverlayNodules(bank, count_probs=(0, 0, 1)).set_random_state(5)
    square = lung_square()
    before = {key: square[key].clone() for key in ("image", "label")}
    out = insert(square)
    assert out["labelled"].tolist() == [1, 1]
    nodule = out["label"] == 2
    assert nodule.sum() > 100
    assert (nodule & (before["label"] == 1)).sum() >= 0.8 * nodule.sum()
    apart = torch.nn.functional.max_pool2d(nodule.float(), 5, stride=1, padding=2) == 0  # beyond the soft rim
    assert torch.equal(out["image"][apart], before["image"][apart])
    assert torch.equal(square["image"], before["image"])  # a cached square stays as it is
    drawn = {**square, "labelled": torch.tensor([1.0, 1.0])}
    assert torch.equal(insert(drawn)["label"], square["label"])
    again = insert.set_random_state(5)(square)
    assert torch.equal(again["image"], out["image"])


def test_the_clock_goes_on_from_an_earlier_run():
    clock, resumed = CpuClock(), CpuClock()
    clock.earlier = 12.5
    resumed.load_state_dict(clock.state_dict())
    assert 12.5 <= resumed.minutes() < 13
