"""Laws of the CycleGAN bundle: its networks, losses, history, schedule and distance."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export

ROOT = Path(__file__).resolve().parents[1] / "bundles" / "cyclegan_bundle"
sys.path.append(str(ROOT))

from cyclegan.common.hounsfield import NETWORK_WINDOW
from cyclegan.common.sliced_wasserstein import laplacian_pyramid
from cyclegan.history import ImageHistory
from cyclegan.losses import GeneratorLoss, Translation, generator_terms, outline_change, volume_change
from cyclegan.metrics import HUChange, LabelsKept, SlicedWasserstein
from cyclegan.network import HashNoise, PatchDiscriminator, ResidualEnhancer
from cyclegan.schedule import linear_decay
from cyclegan.trainer import Networks
from cyclegan_toys import HU_PER_UNIT, LOSS_WEIGHTS, make_trainer, trained_like


def test_generator_starts_as_the_identity() -> None:
    image = torch.randn(2, 1, 17, 20)
    assert torch.equal(ResidualEnhancer(channels=4)(image), image)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 2)])
def test_residual_is_bounded_for_any_size(size) -> None:
    network = trained_like(max_residual_hu=70)
    change = network(image := 3 * torch.randn(1, 1, *size)) - image
    assert change.shape == image.shape
    assert 0 < change.abs().max() * HU_PER_UNIT <= 70 * (1 + 1e-5)


@pytest.mark.parametrize("dilations", [(1, 2, 2, 1), (3,)])
def test_pixel_depends_on_its_neighbourhood_only_and_on_all_of_it(dilations) -> None:
    reached_all = False
    for seed in range(4):  # where a ReLU is shut, a way is not seen
        network = trained_like(seed=seed, dilations=dilations).double()  # else a far pixel's weight is lost in rounding
        reach = network.receptive_field_px // 2
        size, centre = 4 * reach, 2 * reach
        image = (torch.rand(1, 1, size, size, dtype=torch.float64) - 0.5).requires_grad_()
        for pixel in ((centre, centre), (centre + 1, centre + 1)):  # the two corners of a cell of 2 x 2
            image.grad = None
            network(image)[0, 0, *pixel].backward()
            reached = (image.grad[0, 0].nonzero() - torch.tensor(pixel)).abs().max()
            reached_all |= bool(reached == reach)
            assert reached <= reach
    assert reached_all


def test_region_computed_alone_equals_the_whole_slice() -> None:
    network = trained_like()
    reach = -(-(network.receptive_field_px // 2) // network.alignment_px) * network.alignment_px
    image = torch.rand(1, 1, 160, 140) - 0.5
    top, left = 40, 36
    region = image[..., top - reach : top + 20 + reach, left - reach : left + 30 + reach]
    alone = network(region)[..., reach:-reach, reach:-reach]
    torch.testing.assert_close(alone, network(image)[..., top : top + 20, left : left + 30], atol=2e-5, rtol=0)


def test_hash_noise_is_white_noise_that_moves_with_the_image() -> None:
    rows, columns = np.mgrid[:120, :140]
    hu = np.rint(-850 + 40 * np.sin(rows / 15) * np.cos(columns / 11)).astype(np.int16)  # smooth, as a drawn lung
    grain = HashNoise()(NETWORK_WINDOW.to_unit(torch.from_numpy(hu), clip=False)[None, None])[0, 0].numpy()
    part = HashNoise()(NETWORK_WINDOW.to_unit(torch.from_numpy(hu[7:60, 5:90]), clip=False)[None, None])[0, 0].numpy()
    np.testing.assert_array_equal(part[1:-1, 1:-1], grain[8:59, 6:89])
    assert np.abs(grain).max() <= 1
    assert grain.std() == pytest.approx(1 / np.sqrt(3), rel=0.1)
    for neighbour in (grain[:, 1:] * grain[:, :-1], grain[1:] * grain[:-1]):
        assert abs(neighbour.mean() / grain.var()) < 0.15


def test_scripted_generator_gives_the_same() -> None:
    network = trained_like()
    image = torch.randn(1, 1, 33, 30)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


@pytest.mark.parametrize("config", ["train.json", "inference.json"])
def test_the_shipped_generator_is_the_one_of_the_card(config) -> None:
    parser = ConfigParser()
    parser.read_config(str(ROOT / "configs" / config))
    network = parser.get_parsed_content("network_def")
    assert network.receptive_field_px == 57
    card = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert f"a pixel depends on {network.receptive_field_px} x {network.receptive_field_px} px" in card
    assert f"{sum(weight.numel() for weight in network.parameters()):,} weights in G" in card


def test_torchscript_export_equals_the_network_at_any_size(tmp_path) -> None:
    network, image = trained_like(dilations=[1]), torch.randn(2, 1, 37, 50)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        meta_file=str(ROOT / "configs" / "metadata.json"),
        config_file=str(ROOT / "configs" / "inference.json"),
        **{"network_def#channels": 4, "network_def#dilations": [1]},
    )
    exported = torch.jit.load(tmp_path / "model.ts")
    torch.testing.assert_close(exported(image), network(image))
    assert not torch.equal(exported(image), image)


def test_discriminator_scores_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(channels=4).eval()
    images = torch.rand(3, 1, 64, 72)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))
    assert network(images).shape == (3, 1, 64 // 4 - 2, 72 // 4 - 2)


def test_generator_refuses_a_bound_of_zero() -> None:
    with pytest.raises(ValueError, match="max_residual_hu > 0"):
        ResidualEnhancer(max_residual_hu=0)


def test_swapping_the_domains_swaps_the_losses(monkeypatch) -> None:
    def trainer_and_batch(swapped: bool):
        torch.manual_seed(0)
        G, F = trained_like(seed=1), trained_like(seed=2)
        D_X, D_Y = PatchDiscriminator(channels=4), PatchDiscriminator(channels=4)
        batch = {key: torch.rand(2, 1, 32, 32) for key in ("x", "y")}
        batch |= {f"{key}_nodule": torch.rand(2, 1, 32, 32) > 0.8 for key in ("x", "y")}
        nets = {"G": F, "F": G, "D_X": D_Y, "D_Y": D_X} if swapped else {"G": G, "F": F, "D_X": D_X, "D_Y": D_Y}
        if swapped:
            batch = {"x": batch["y"], "y": batch["x"], "x_nodule": batch["y_nodule"], "y_nodule": batch["x_nodule"]}
        return make_trainer(Networks(**nets)), batch

    (one, batch), (other, swapped_batch) = trainer_and_batch(False), trainer_and_batch(True)
    monkeypatch.setattr("cyclegan.trainer._SHIFTS", 1)  # drawn for one direction first, then for the other
    losses, swapped = one._iteration(one, batch), other._iteration(other, swapped_batch)
    assert losses["loss"] == pytest.approx(swapped["loss"])
    for name in ("adversarial_", "cycle_", "identity_", "nodule_", "volume_", "outline_", "d_"):
        assert losses[f"{name}x"] == pytest.approx(swapped[f"{name}y"], rel=1e-4)
        assert losses[f"{name}x"] != pytest.approx(losses[f"{name}y"], rel=1e-5)


def test_each_term_measures_its_own_fault() -> None:
    source, nodule = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    nodule[..., :2, :2] = True
    fake = source + 0.5 * nodule
    made = Translation(source, nodule, fake=fake, back=source + 1, same=source - 2, score=torch.full((1, 1, 2, 2), 0.5))
    assert [float(term) for term in generator_terms(made, tolerance_hu=0)[:4]] == [0.25, 1.0, 2.0, 0.5]
    nothing = generator_terms(made._replace(nodule=torch.zeros_like(nodule)), tolerance_hu=0)
    assert [float(nothing.nodule), float(nothing.volume)] == [0, 0]
    huber = generator_terms(made, tolerance_hu=1.5 * HU_PER_UNIT)
    assert [float(huber.cycle), float(huber.identity)] == pytest.approx([1 / 3, 2 - 0.75])
    loss = GeneratorLoss(**LOSS_WEIGHTS, tolerance_hu=0)
    assert float(loss.total(loss.terms(made))) == pytest.approx(
        sum(w * float(t) for w, t in zip([1, *LOSS_WEIGHTS.values()], loss.terms(made), strict=True))
    )


def test_volume_term_sees_a_nodule_grow_and_the_outline_term_a_lung_shrink() -> None:
    rows, columns = torch.meshgrid(torch.arange(48) - 24, torch.arange(48) - 24, indexing="ij")
    distance = (rows**2 + columns**2).sqrt()

    def disc(radius_px: float) -> torch.Tensor:
        return NETWORK_WINDOW.to_unit(torch.where(distance <= radius_px, 20.0, -850.0), clip=False)[None, None]

    nodule = (distance <= 6)[None, None]
    area = int(nodule.sum())
    assert float(volume_change(disc(6), disc(6), nodule)) == 0
    for radius in (5, 7):
        expected = abs(int((distance <= radius).sum()) - area) / area
        assert float(volume_change(disc(6), disc(radius), nodule)) == pytest.approx(expected, abs=0.01)
    assert float(outline_change(disc(6), disc(7)).mean()) == pytest.approx(
        float((distance <= 7).sum() - area) / 48**2, abs=1e-3
    )
    noisy = disc(6) + 0.02 * torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    assert float(outline_change(disc(6), noisy).mean()) < 1e-3
    metric = LabelsKept(lambda output: output)
    for after in (disc(6), disc(7), disc(6) + 30 / HU_PER_UNIT):
        metric.update((disc(6), after, nodule))
    assert metric.compute() == pytest.approx(1 / 3)


def test_history_gives_back_what_it_got_and_its_state_continues_it() -> None:
    torch.manual_seed(0)
    first, second = ImageHistory(4), ImageHistory(4)
    batches = torch.arange(24.0).reshape(12, 2, 1, 1, 1)
    for batch in batches[:6]:
        first(batch)
    second.load_state_dict(first.state_dict())
    random_state = torch.get_rng_state()
    wanted = [first(batch) for batch in batches[6:]]
    torch.set_rng_state(random_state)
    assert all(torch.equal(second(batch), want) for batch, want in zip(batches[6:], wanted, strict=True))
    given = torch.cat(wanted).flatten().tolist()
    assert any(value < 12 for value in given)
    assert any(value >= 12 for value in given)
    assert torch.equal(ImageHistory(0)(batches[0]), batches[0])


def test_learning_rate_is_constant_then_falls_and_never_reaches_zero() -> None:
    assert [linear_decay(epoch, max_epochs=4) for epoch in range(5)] == [1, 1, 1, 0.5, 0]
    assert linear_decay(0, max_epochs=1) == 1


def test_distance_is_zero_for_a_set_with_itself_and_grows_with_blur() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 1, 32, 32)
    blurred = [torch.nn.functional.avg_pool2d(images, k, stride=1, padding=k // 2) for k in (3, 7)]

    def distance(other: torch.Tensor) -> float:
        metric = SlicedWasserstein(lambda output: output, ceiling_hu=400.0)
        metric.update((other, images))
        return metric.compute()

    same = SlicedWasserstein(lambda output: output, ceiling_hu=400.0, patches=1000)
    same.update((images, images))
    assert same.compute() < 0.05 < distance(blurred[0]) < distance(blurred[1])


def test_pyramid_adds_up_to_the_image() -> None:
    image = torch.rand(1, 1, 21, 30)
    detail, rest = laplacian_pyramid(image, 2, upsampling="bilinear")
    up = torch.nn.functional.interpolate(rest, size=(21, 30), mode="bilinear", align_corners=False)
    torch.testing.assert_close(detail + up, image)


def test_hu_change_counts_the_mask_only() -> None:
    metric = HUChange(lambda output: output)
    before, mask = torch.zeros(1, 1, 2, 2), torch.tensor([[[[True, False], [False, False]]]])
    metric.update((before, before + 0.1 * mask - 0.2 * ~mask, mask))
    assert metric.compute() == pytest.approx(70)
