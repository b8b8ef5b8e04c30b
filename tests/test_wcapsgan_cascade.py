"""Laws of the cascade: a layout, local detail on it, and what it learns from."""

import json
import sys

import numpy as np
import pytest
import torch
import torch._dynamo  # three seconds, which the first optimiser takes otherwise
from torch.nn import functional
from wcapsgan_toys import BUNDLE, make_generator

sys.path.insert(0, str(BUNDLE))

from wcapsgan.cascade import Cascade, load_layout, lungs_in, noise_of, quiet_air
from wcapsgan.common.weights import WeightsMismatch
from wcapsgan.detail import DetailGenerator, consistent, enlarged
from wcapsgan.detail_trainer import DetailLosses, DetailPlayers, DetailTrainer
from wcapsgan.ema import average_of
from wcapsgan.latents import seeded_generator
from wcapsgan.local_critic import LocalCapsuleCritic
from wcapsgan.patches import DetailPatches, PatchSettings
from wcapsgan.sampler import Sampler
from wcapsgan.texture import TextureStyle, texture

SETTINGS = PatchSettings(size=16, margin=4, largest_spacing_mm=1.0)


def make_detail(**settings) -> DetailGenerator:
    return DetailGenerator(**{"channels": [6, 4, 4], "blocks": [1, 1, 1], "style_dim": 3, **settings})


def make_cascade(**settings) -> Cascade:
    torch.manual_seed(0)
    layout = make_generator(n_categories=1, size=32)
    return Cascade(**{"layout": layout, "detail": make_detail(), "coarse_size": 16, "size": 64, **settings}).eval()


def restored(detail: DetailGenerator, coarse: torch.Tensor, *, margin: int = 0, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    shapes = detail.noise_shapes(*coarse.shape[-2:], margin=margin)
    noise = [torch.randn(len(coarse), *shape, generator=draw) for shape in shapes]
    with torch.inference_mode():
        return detail(coarse, torch.zeros(len(coarse), detail.style_dim), noise, margin)


@pytest.fixture
def cohort(tmp_path):
    """Two whole slices, one from a coarse scan, and a window whose source ends before its border."""
    rng = np.random.default_rng(0)
    for folder in ("lungs", "windows"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((48, 48), np.uint8)
    mask[8:40, 8:40] = 1
    hu = np.where(mask > 0, -850, 40) + rng.normal(0, 20, mask.shape)
    lungs = []
    for name in ("fine", "coarse"):
        np.savez(tmp_path / "lungs" / f"{name}.npz", hu=hu.astype(np.int16), mask=mask)
        lungs.append({"lung": f"lungs/{name}.npz", "patient_id": name, "series_id": name, "category": "normal"})
    stack = rng.normal(-850, 20, (3, 24, 24)).astype(np.int16)
    np.savez(tmp_path / "windows" / "n0.npz", hu=np.pad(stack, ((0, 0), (0, 8), (4, 4)), mode="edge"))
    nodules = [{"nodule_id": "n0", "patient_id": "p"}, {"nodule_id": "without_window", "patient_id": "q"}]
    for name, entries in (("lungs", lungs), ("nodules", nodules)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    rows = "series_id,spacing_row_mm\nfine,0.7\ncoarse,1.4\n"
    (tmp_path / "series.csv").write_text(rows, encoding="utf-8")
    return tmp_path


def test_detail_keeps_the_means_of_its_layout() -> None:
    coarse = enlarged(0.6 * torch.rand(2, 1, 4, 4) - 0.3, 3)
    fine = restored(make_detail(), coarse)
    assert fine.shape == (2, 1, 48, 48)
    torch.testing.assert_close(functional.avg_pool2d(fine, 4), coarse, atol=0.03, rtol=0)
    drifted = consistent(enlarged(coarse, 4) + 0.5, coarse, 4)
    torch.testing.assert_close(functional.avg_pool2d(drifted, 4), coarse, atol=0.03, rtol=0)


def test_detail_sees_only_so_far_and_follows_its_noise() -> None:
    detail = make_detail().eval()
    coarse = torch.zeros(1, 1, 24, 24)
    changed = coarse.clone()
    changed[..., 2, 2] = 0.5
    same = restored(detail, coarse)
    assert torch.equal(same, restored(detail, coarse))
    assert torch.equal(same[..., 60:, 60:], restored(detail, changed)[..., 60:, 60:])
    assert not torch.equal(same[..., :16, :16], restored(detail, changed)[..., :16, :16])
    assert not torch.equal(same, restored(detail, coarse, seed=1))
    with pytest.raises(ValueError, match="each of two scales"):
        make_detail(blocks=[1])


def test_margins_are_surroundings_alone() -> None:
    coarse = torch.randn(1, 1, 12, 10).clamp(-0.5, 0.5)
    assert restored(make_detail().eval(), coarse, margin=2).shape == (1, 1, 32, 24)


def test_a_cascade_makes_a_sample_from_its_latent_alone() -> None:
    cascade = make_cascade()
    latent = torch.randn(3, cascade.latent_dim)
    with torch.inference_mode():
        together, alone = cascade(latent), cascade(latent[1:2])
    assert together.shape == (3, 2, 64, 64)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)
    assert set(together[:, 1].unique().tolist()) <= {0.0, 1.0}
    fields = noise_of(latent, cascade.detail.noise_shapes(16, 16))
    assert torch.equal(fields[0][1], noise_of(latent[1:2], cascade.detail.noise_shapes(16, 16))[0][0])
    with pytest.raises(ValueError, match="size must divide"):
        make_cascade(size=48)


def test_samplers_take_a_cascade_as_they_take_a_generator() -> None:
    for size in (64, 32):
        settings = {"sample_type": "lung", "categories": ["normal"], "spacing_mm": 0.7, "edge_px": 0.0}
        sampler = Sampler(make_cascade(size=size), network_batch_size=1, **settings)
        first, again = (sampler([3, 4], ["normal"] * 2, [None] * 2) for _ in range(2))
        assert first["hu"].shape == first["mask"].shape == (2, size, size)
        assert np.array_equal(first["hu"], again["hu"])
        assert np.array_equal(first["mask"], again["mask"])
        assert np.array_equal(first["hu"][1], sampler([4], ["normal"], [None])["hu"][0])
        assert not np.array_equal(first["hu"][0], first["hu"][1])


def test_masks_follow_the_image_near_the_outline() -> None:
    image = torch.full((1, 1, 60, 60), 0.5)
    image[..., 10:50, 10:50] = -0.8  # lung
    image[..., 29:31, 10:50] = 0.3  # a vessel, to the outline
    coarse = torch.zeros_like(image)
    coarse[..., 4:56, 4:56] = 0.5  # somewhere about
    coarse[..., 16:44, 16:44] = 1.0
    mask = lungs_in(image, coarse)[0, 0]
    assert mask[12:48, 12:48].min() == 1
    assert mask.sum() == pytest.approx(40 * 40, rel=0.05)


def test_air_around_the_body_is_quiet_and_lung_is_not() -> None:
    coarse = torch.stack([torch.full((12, 12), -0.99), torch.zeros(12, 12)])[None]
    coarse[:, 0, :, :4] = 0.1  # the body
    coarse[:, 1, :, 9:] = 1.0  # lung as dark as air
    image = torch.randn(1, 1, 48, 48)
    quiet = quiet_air(image, coarse)
    assert torch.equal(quiet[..., :16], image[..., :16])
    assert torch.equal(quiet[..., 40:], image[..., 40:])
    torch.testing.assert_close(quiet[..., 24:32], torch.full((1, 1, 48, 8), -0.99))


def test_a_layout_comes_from_a_generator_or_from_a_cascade(tmp_path) -> None:
    trained, cascade = make_generator(n_categories=1, size=32), make_cascade()
    torch.save(trained.state_dict(), tmp_path / "layout.pt")
    load_layout(cascade, tmp_path / "layout.pt")
    torch.save(cascade.state_dict(), tmp_path / "cascade.pt")
    other = load_layout(make_cascade(), tmp_path / "cascade.pt")
    for name, value in trained.state_dict().items():
        assert torch.equal(other.layout.state_dict()[name], value)
    torch.save(make_generator(size=32).state_dict(), tmp_path / "other.pt")
    with pytest.raises(WeightsMismatch, match="layout_def"):
        load_layout(cascade, tmp_path / "other.pt")


def test_the_critic_scores_places_by_what_is_near() -> None:
    torch.manual_seed(0)
    critic = LocalCapsuleCritic(channels=[4, 6, 8], factor=4)
    image, coarse = torch.rand(2, 1, 128, 128), torch.zeros(2, 1, 32, 32)
    scores = critic(image, coarse)
    assert scores.shape == (2, 64)
    image[0, 0, 0, 0] += 0.5
    changed = (critic(image, coarse) != scores).reshape(2, 8, 8)
    assert changed[0, 0, 0]
    assert not changed[0, 4:, 4:].any()
    assert not changed[1].any()


def test_textures_of_noise_and_their_scale() -> None:
    torch.manual_seed(0)
    strength = torch.linspace(0.01, 0.1, 12)[:, None, None, None]
    images = -0.8 + strength * torch.randn(12, 1, 64, 64)
    levels = texture(images)
    assert (levels[1:] > levels[:-1]).all()
    mean = 0.05 * (2 / np.pi) ** 0.5  # of the absolute value of normal noise
    assert texture(-0.8 + 0.05 * torch.randn(1, 1, 128, 128))[0, 0].exp().item() == pytest.approx(mean, rel=0.1)
    styles = TextureStyle(images, style_dim=5)(images, torch.zeros(12, 3))
    assert styles.shape == (12, 5)
    torch.testing.assert_close(styles[:, :2].T.cov(), torch.eye(2), atol=1e-3, rtol=0)


def test_patches_of_slices_and_windows(cohort) -> None:
    patches = DetailPatches(cohort, split="training", settings=SETTINGS)
    assert [len(group) for group in (patches.slices, patches.windows)] == [1, 1]  # none from the coarse scan
    assert patches.windows[0][0].hu.shape == (24, 24)  # of 32 x 32, without the repeated border
    drawn = patches.draw(seeded_generator(1), 8)
    assert drawn.shape == (8, 1, 24, 24)
    assert drawn.dtype == torch.float32
    assert drawn.abs().max() <= 1
    assert torch.equal(drawn, patches.draw(seeded_generator(1), 8))
    only = DetailPatches(cohort, split="training", settings=SETTINGS._replace(window_share=1.0))
    assert not only.slices
    assert only.draw(seeded_generator(0), 2).max() < 0
    with pytest.raises(ValueError, match="--lung-size"):
        DetailPatches(cohort, split="training", settings=SETTINGS._replace(largest_spacing_mm=0.5))
    with pytest.raises(FileNotFoundError, match="lungsynth prepare"):
        DetailPatches(cohort / "lungs", split="training")


def test_a_training_changes_the_detail_and_goes_on_exactly(cohort) -> None:
    def trainer() -> DetailTrainer:
        torch.manual_seed(0)
        cascade, critic = make_cascade(), LocalCapsuleCritic(channels=[4, 6], factor=4)
        adam = {"lr": 1e-3, "betas": (0.0, 0.99)}
        players = DetailPlayers(
            cascade=cascade,
            critic=critic,
            generator_optimizer=torch.optim.Adam(cascade.detail.parameters(), **adam),
            critic_optimizer=torch.optim.Adam(critic.parameters(), **adam),
            ema=average_of(cascade, 0.9),
        )
        patches = DetailPatches(cohort, split="training", settings=SETTINGS)
        return DetailTrainer(
            "cpu", 1, 2, patches=patches, batch_size=3, seed=0, players=players, losses=DetailLosses(), amp=False
        )

    whole, before = trainer(), make_cascade().state_dict()
    terms = whole.step(1)
    assert all(np.isfinite(value) for value in terms.values())
    assert {"loss", "critic_loss", "penalty", "consistency", "texture"} <= set(terms)
    after = whole.players.cascade.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("layout."))
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("detail."))
    stopped = trainer()
    for name in ("cascade", "critic", "generator_optimizer", "critic_optimizer", "ema"):
        getattr(stopped.players, name).load_state_dict(getattr(whole.players, name).state_dict())
    assert whole.step(2) == pytest.approx(stopped.step(2), rel=1e-3)  # sums of floats may be taken in another order
    whole.patches.settings = SETTINGS._replace(size=18)
    with pytest.raises(ValueError, match="multiples of 4"):
        DetailTrainer("cpu", 1, 1, patches=whole.patches, batch_size=1, seed=0, players=whole.players)
