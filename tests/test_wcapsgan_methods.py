"""Laws of the other methods of Table II in the wcapsgan bundle, and of what all its trainings share."""

import json
import sys
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trainings
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.engines import Evaluator
from wcapsgan_toys import BUNDLE, CATEGORIES, ONE_CRITIC, disc, read_samples

from lungsynth.bundles import open_bundle

sys.path.insert(0, str(BUNDLE))

from wcapsgan.baselines.biggan import BigGanCritic, BigGanGenerator
from wcapsgan.baselines.capsulegan import CapsuleDiscriminator
from wcapsgan.baselines.dcgan import DcganCritic, DcganGenerator
from wcapsgan.baselines.plain import PlainDiscriminator, PlainGenerator
from wcapsgan.batch_norm import StandingStatistics
from wcapsgan.budget import TimeBudget
from wcapsgan.categories import CategoryRule
from wcapsgan.common.best_weights import BestWeights
from wcapsgan.common.processes import join_processes, leave_processes
from wcapsgan.common.provenance import file_sha256
from wcapsgan.latents import seeded_generator
from wcapsgan.losses import gradient_penalty
from wcapsgan.objectives import Hinge, Margin, NonSaturating, Wasserstein
from wcapsgan.trainer import COLLAPSED

ROOT = Path(__file__).parents[1]
CONFIGS = BUNDLE / "configs"
METHODS = ("gan", "dcgan", "wgan", "biggan", "capsulenets")
NARROW = {"network_def#width": 8, "critic_def#width": 8}
TINY = {
    "": {"network_def#channels": 8, "critic_def#channels": 4, **ONE_CRITIC},
    "gan": {"network_def#widths": [8, 8], "critic_def#widths": [8, 8]},
    "dcgan": NARROW,
    "wgan": {**NARROW, "train#critic_schedule#n_critic": 2},
    "biggan": NARROW,
    "capsulenets": NARROW,
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Discs of 4 to 7 px in noise, ground glass or solid."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "nodules").mkdir()
    rng, entries = np.random.default_rng(0), []
    for i in range(6):
        alpha = np.stack([disc(7 - 0.5 * i), disc(7 - 0.4 * i)])
        hu = np.where(alpha > 0, -400 if i % 2 else 0, -850) + rng.normal(0, 30, alpha.shape)
        np.savez(folder / "nodules" / f"{i}.npz", hu=hu.astype(np.int16), alpha=alpha, largest=1)
        entries.append({"nodule": f"nodules/{i}.npz", "category": CATEGORIES[1 - i % 2]})
    (folder / "nodules.json").write_text(
        json.dumps({"training": entries, "validation": entries, "test": []}), encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def ovals(tmp_path_factory) -> Path:
    """Nodules of one size whose outlines differ: ovals of 7 px, up to 2.5 times as long as wide, in all directions."""
    folder = tmp_path_factory.mktemp("ovals")
    (folder / "nodules").mkdir()
    rng, entries, axes = np.random.default_rng(0), [], np.indices((16, 16)) - 7.5
    for i in range(48):
        angle, ratio = rng.uniform(0, np.pi), rng.uniform(1, 2.5)
        along = axes[0] * np.cos(angle) + axes[1] * np.sin(angle)
        across = axes[1] * np.cos(angle) - axes[0] * np.sin(angle)
        alpha = (np.hypot(along / np.sqrt(ratio), across * np.sqrt(ratio)) <= 3.5).astype(np.float16)[None]
        hu = np.where(alpha > 0, -400 if i % 2 else 0, -850) + rng.normal(0, 30, alpha.shape)
        np.savez(folder / "nodules" / f"{i}.npz", hu=hu.astype(np.int16), alpha=alpha, largest=0)
        entries.append({"nodule": f"nodules/{i}.npz", "category": CATEGORIES[1 - i % 2]})
    (folder / "nodules.json").write_text(
        json.dumps({"training": entries, "validation": entries, "test": []}), encoding="utf-8"
    )
    return folder


def open_training(name: str, cohort: Path, output: Path, *overlays: str, **settings: Any) -> ConfigWorkflow:
    """The tiny training of a method, or without a name of the W-CapsuleGAN."""
    files = [f"train_{name}.json"] if name else []
    sizes = {"max_epochs": 2, "epoch_length": 2, "batch_size": 4, "val_interval": 1, "size": 16}
    tiny = {**sizes, "network_def#latent_dim": 8, "categories": CATEGORIES, **TINY[name]}
    workflow = trainings.open_training(BUNDLE, cohort, output, *files, *overlays, **{**tiny, **settings})
    workflow.initialize()
    return workflow


def steps_of(workflow: ConfigWorkflow) -> list[dict[str, float]]:
    """Runs a training as it is configured and returns what each of its steps gave."""
    trainer, outputs = workflow.parser.get_parsed_content("train#trainer"), []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    trainer.run()
    return outputs


def train(name: str, cohort: Path, output: Path, **settings: Any) -> dict[str, Any]:
    workflow = open_training(name, cohort, output, **settings)
    workflow.run()
    epoch = workflow.parser.get_parsed_content("train#trainer").state.epoch
    return torch.load(output / f"resume_{epoch}.pt", weights_only=True)


def assert_equal_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("generator", "critic", "ema"):
        for key, value in one[part].items():
            assert torch.equal(value, other[part][key]), (part, key)


# ---------------------------------------------------------------- objectives
def test_objectives_are_those_of_the_papers() -> None:
    real, fake = torch.tensor([0.8, 0.95]), torch.tensor([0.05, 0.4])
    probability = torch.sigmoid
    goodfellow = -(probability(real).log().mean() + (1 - probability(fake)).log().mean())
    torch.testing.assert_close(NonSaturating().critic_loss(real, fake), goodfellow)
    torch.testing.assert_close(NonSaturating().generator_loss(fake), -probability(fake).log().mean())
    assert float(Hinge().critic_loss(real, fake)) == pytest.approx((0.2 + 0.05) / 2 + (1.05 + 1.4) / 2)
    assert float(Hinge().generator_loss(fake)) == pytest.approx(-0.225)
    assert float(Margin().critic_loss(real, fake)) == pytest.approx(0.1**2 / 2 + 0.5 * 0.3**2 / 2)
    assert float(Margin().generator_loss(fake)) == pytest.approx((0.85**2 + 0.5**2) / 2)
    assert float(Wasserstein(drift_weight=0).critic_loss(real, fake)) == pytest.approx(0.225 - 0.875)
    assert not any(objective.penalty_interval for objective in (NonSaturating(), Hinge(), Margin()))
    with pytest.raises(ValueError, match="at least 1 critic step, got 0"):
        Wasserstein(penalty_interval=0)


def test_lazy_penalty_counts_as_often_as_it_is_left_out(cohort, tmp_path) -> None:
    penalties: dict[int, list[float]] = {}
    for interval in (1, 3):
        settings = {"max_epochs": 1, "epoch_length": 5, "val_interval": 9}
        settings["train#objective#penalty_interval"] = interval
        workflow = open_training("", cohort, tmp_path, **settings)
        trainer, calls = workflow.parser.get_parsed_content("train#trainer"), []
        workflow.parser.get_parsed_content("critic").register_forward_hook(
            lambda *_, t=trainer, c=calls: c.append(t.state.iteration)
        )
        penalties[interval] = [step["gradient_penalty"] for step in steps_of(workflow)]
        assert [calls.count(iteration) for iteration in range(1, 6)] == ([3] * 5 if interval == 1 else [3, 2, 2, 3, 2])
    assert penalties[3][0] == pytest.approx(3 * penalties[1][0])
    assert [penalty > 0 for penalty in penalties[3]] == [True, False, False, True, False]


@pytest.mark.parametrize(("shared", "learning"), [(True, [True]), (False, [False, True])])
def test_shared_forward_spares_a_pass_through_the_generator(shared: bool, learning: list[bool], cohort, tmp_path):
    settings = {"max_epochs": 1, "epoch_length": 1, "val_interval": 9, "train#critic_schedule#shared_forward": shared}
    workflow, passes = open_training("", cohort, tmp_path, **settings), []
    workflow.parser.get_parsed_content("network").register_forward_hook(
        lambda network, arguments, samples: passes.append(samples.requires_grad)
    )
    steps_of(workflow)
    assert passes == learning


# ---------------------------------------------------------------- networks
def generators(size: int, n_categories: int) -> list[torch.nn.Module]:
    shape = {"latent_dim": 12, "n_categories": n_categories, "size": size}
    return [
        PlainGenerator(**shape, widths=(6, 6), pixels=16),
        DcganGenerator(**shape, width=8),
        BigGanGenerator(**shape, width=8),
    ]


def critics(size: int, n_categories: int) -> list[torch.nn.Module]:
    shape = {"n_categories": n_categories, "size": size}
    return [
        PlainDiscriminator(**shape, widths=(6, 6), pixels=16),
        DcganCritic(**shape, width=8, batch_norm=True),
        DcganCritic(**shape, width=8, batch_norm=False),
        BigGanCritic(**shape, width=8),
        CapsuleDiscriminator(**shape, width=8),
    ]


@pytest.mark.parametrize(("size", "n_categories"), [(16, 1), (64, 3)])
def test_networks_have_the_interface_and_each_weight_a_gradient(size: int, n_categories: int) -> None:
    torch.manual_seed(0)
    latent, category, diameter = torch.randn(6, 12), torch.arange(6) % n_categories, torch.linspace(0, 12, 6)
    for generator in generators(size, n_categories):
        assert (generator.latent_dim, generator.n_categories, generator.size) == (12, n_categories, size)
        assert generator.diameter_quantiles.shape == (n_categories, 101)
        samples = generator(latent, category, diameter)
        assert samples.shape == (6, 2, size, size)
        assert samples[:, 0].abs().max() <= 1
        assert samples[:, 1].min() >= 0
        (samples * torch.randn(samples.shape)).sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in generator.parameters())
    for critic in critics(size, n_categories):
        values = critic(torch.randn(6, 2, size, size), category, diameter)
        assert values.shape == (6,)
        (values * torch.randn(6)).sum().backward()
        idle = [name for name, p in critic.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not idle, (type(critic).__name__, idle)


def test_capsule_lengths_are_probabilities_and_move() -> None:
    torch.manual_seed(0)
    discriminator = CapsuleDiscriminator(n_categories=2, size=32, width=32)
    lengths = discriminator(torch.randn(8, 2, 32, 32), torch.arange(8) % 2, torch.ones(8)).detach()
    assert float(lengths.min()) > 0.01
    assert float(lengths.max()) < 1


def test_spectral_norm_bounds_the_layers() -> None:
    critic = BigGanCritic(n_categories=2, size=16, width=8)
    with torch.no_grad():
        for p in critic.parameters():
            p.mul_(30)
        for _ in range(30):
            critic(torch.randn(4, 2, 16, 16), torch.zeros(4, dtype=torch.int64), torch.ones(4))
    weight = critic.eval().last.first.weight.detach().flatten(1)
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=0.05)


def test_penalty_reaches_every_weight_of_the_wgan_critic() -> None:
    critic = DcganCritic(n_categories=2, size=16, width=8, batch_norm=False)
    x, conditions = torch.randn(2, 3, 2, 16, 16), (torch.arange(3) % 2, torch.ones(3))
    gradient_penalty(critic, x[0], x[1], conditions, torch.rand(3)).backward()
    assert all(p.grad.abs().sum() > 0 for name, p in critic.named_parameters() if name.endswith("weight"))


def test_sizes_that_cannot_be_reached_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiple of pixels \(64\) or smaller, got 96"):
        PlainGenerator(latent_dim=8, n_categories=1, size=96)
    with pytest.raises(ValueError, match=r"latent_dim must be at least 5 for a size of 64, got 4"):
        BigGanGenerator(latent_dim=4, n_categories=1, size=64, width=16)


def test_standing_statistics_are_those_of_the_network_itself(cohort) -> None:
    samples = read_samples(cohort, CategoryRule(CATEGORIES))
    torch.manual_seed(0)
    generator = DcganGenerator(latent_dim=8, n_categories=2, size=16, width=8)
    standing = StandingStatistics(generator, dataset=samples, batch_size=64, batches=4)
    seen = []
    generator.layers[0].register_forward_hook(lambda layer, args, out: seen.append(out.detach()))
    standing()
    norm = generator.layers[1]
    torch.testing.assert_close(norm.running_mean, torch.cat(seen).mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    assert norm.momentum == 0.1
    assert not generator.training
    first = {key: value.clone() for key, value in generator.state_dict().items()}
    standing()
    assert all(torch.equal(first[key], value) for key, value in generator.state_dict().items())


# ---------------------------------------------------------------- trainings
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_resumes_and_samples(name: str, cohort, tmp_path) -> None:
    whole = train(name, cohort, tmp_path / "whole")
    train(name, cohort, tmp_path / "parts", max_epochs=1)
    torch.rand(7)  # noise between the two
    resume = str(tmp_path / "parts" / "resume_1.pt")
    resumed = train(name, cohort, tmp_path / "parts", resume_from=resume)
    assert_equal_states(whole, resumed)
    assert resumed["clock"]["minutes"] >= 0
    sidecar = json.loads((tmp_path / "whole" / "model.json").read_text(encoding="utf-8"))
    assert sidecar["train_minutes"] >= 0
    assert "swd" in sidecar["validation"]
    tiny = {key: value for key, value in TINY[name].items() if key.startswith("network_def")}
    sampler = open_bundle(
        ROOT / "bundles",
        "wcapsgan",
        configs=("inference.json", f"inference_{name}.json"),
        weights=tmp_path / "whole" / "model.pt",
        overrides={"size": 16, "categories": CATEGORIES, "network_batch_size": 4, "network_def#latent_dim": 8, **tiny},
    )
    assert type(sampler.network).__name__ == sidecar["network"].split(".")[-1]
    seeds, names, asked = list(range(6)), CATEGORIES * 3, [None, 5.0] * 3
    together = sampler(seeds, names, asked)
    assert together["hu"].shape == together["alpha"].shape == (6, 16, 16)
    for order in ([4], [5, 0, 3]):
        some = sampler([seeds[i] for i in order], [names[i] for i in order], [asked[i] for i in order])
        for key in ("hu", "alpha", "diameter_mm"):
            assert some[key].tobytes() == together[key][order].tobytes()


@pytest.mark.parametrize("name", METHODS)
def test_overlays_fit_lungs_and_stay_small(name: str) -> None:
    parser = ConfigWorkflow(
        config_file=[str(CONFIGS / f) for f in ("train.json", "train_lung.json", f"train_{name}.json")],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLE),
        device="cpu",
    ).parser
    generator, critic = (parser.get_parsed_content(key) for key in ("network_def", "critic_def"))
    assert (generator.size, generator.n_categories) == (256, 1)
    assert sum(value.numel() for value in generator.state_dict().values()) * 4 < 2.95e6
    with torch.no_grad():
        lung = generator(torch.randn(2, generator.latent_dim), torch.zeros(2, dtype=torch.int64), torch.zeros(2))
        assert critic(lung, torch.zeros(2, dtype=torch.int64), torch.zeros(2)).shape == (2,)
    train_config, inference_config = (
        json.loads((CONFIGS / f"{kind}_{name}.json").read_text(encoding="utf-8")) for kind in ("train", "inference")
    )
    same = {key for key in train_config["network_def"] if key != "_desc_"}
    assert all(train_config["network_def"][key] == inference_config["network_def"][key] for key in same)
    assert parser.get_parsed_content("sidecar#network") == train_config["network_def"]["_target_"]


def test_a_training_ends_with_its_budget_and_the_clock_goes_on(cohort, tmp_path) -> None:
    workflow = open_training("gan", cohort, tmp_path, max_epochs=50, max_minutes=5)
    workflow.parser.get_parsed_content("clock").load_state_dict({"minutes": 5.0})  # as a resumed training would
    workflow.run()
    assert workflow.parser.get_parsed_content("train#trainer").state.epoch == 1
    clock = SimpleNamespace(minutes=lambda: 3.0)
    engine = SimpleNamespace(state=SimpleNamespace(device="cpu", epoch=7), terminate=lambda: ended.append(True))
    ended: list[bool] = []
    TimeBudget(clock, 3.5)(engine)
    assert not ended
    TimeBudget(clock, 3.0)(engine)
    assert ended
    with pytest.raises(ValueError, match="positive or None"):
        TimeBudget(clock, 0)


# ---------------------------------------------------------------- which weights are kept
def kept_of(output: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The kept weights and their sidecar."""
    state = torch.load(output / "model.pt", weights_only=True)
    sidecar = json.loads((output / "model.json").read_text(encoding="utf-8"))
    assert sidecar["sha256"] == file_sha256(output / "model.pt")
    return state, sidecar


def distance_of(state: dict[str, torch.Tensor], cohort: Path, output: Path, **settings: Any) -> float:
    """The validation distance of weights, by a training that has not begun."""
    parser = open_training("", cohort, output, **settings).parser
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.network.load_state_dict(state)
    evaluator.run()
    return evaluator.state.metrics["swd"]


@pytest.mark.parametrize(("epochs", "interval"), [(3, 2), (1, 5)])
def test_the_last_weights_are_kept_with_their_own_figures(epochs: int, interval: int, cohort, tmp_path) -> None:
    """Between two validations, and before the first: the end is validated."""
    ended = train("", cohort, tmp_path, max_epochs=epochs, val_interval=interval)
    state, sidecar = kept_of(tmp_path)
    assert sidecar["epochs"] == epochs
    for key, value in state.items():
        assert torch.equal(value, ended["ema"][f"module.{key}"]), key
    assert sidecar["validation"]["swd"] == pytest.approx(distance_of(state, cohort, tmp_path / "again"))
    assert sidecar["validation"]["val_negative_swd"] == -sidecar["validation"]["swd"]


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_budget_that_ends_before_a_validation_leaves_weights_and_figures(keep: str, cohort, tmp_path) -> None:
    train("", cohort, tmp_path, max_epochs=50, val_interval=40, max_minutes=1e-9, **{"best_weights#keep": keep})
    _, sidecar = kept_of(tmp_path)
    assert sidecar["epochs"] == 1
    assert "swd" in sidecar["validation"]


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_training_that_goes_on_keeps_what_one_without_a_stop_keeps(keep: str, cohort, tmp_path) -> None:
    """Also where the stop was validated though the training without it was not."""
    settings = {"best_weights#keep": keep, "val_interval": 2}
    whole = train("", cohort, tmp_path / "whole", max_epochs=5, **settings)
    for stop in (1, 3):
        parts = tmp_path / f"parts{stop}"
        train("", cohort, parts, max_epochs=stop, **settings)
        kept_of(parts)
        resume = str(parts / f"resume_{stop}.pt")
        resumed = train("", cohort, parts, max_epochs=5, resume_from=resume, **settings)
        assert_equal_states(whole, resumed)
        assert resumed["best_weights"] == whole["best_weights"]
        (one, of_one), (other, of_other) = kept_of(tmp_path / "whole"), kept_of(parts)
        assert all(torch.equal(value, other[key]) for key, value in one.items())
        assert of_one["epochs"] == of_other["epochs"]
        assert of_one["validation"] == pytest.approx(of_other["validation"])


def test_weights_and_figures_can_be_had_of_a_resume_file(cohort, tmp_path) -> None:
    ended = train("", cohort, tmp_path / "training", max_epochs=2)
    resume = str(tmp_path / "training" / "resume_2.pt")
    open_training("", cohort, tmp_path / "taken", max_epochs=2, resume_from=resume).run()
    state, sidecar = kept_of(tmp_path / "taken")
    assert all(torch.equal(value, ended["ema"][f"module.{key}"]) for key, value in state.items())
    assert sidecar["epochs"] == 2
    assert "swd" in sidecar["validation"]


class Validation(Evaluator):
    """An evaluator that does nothing."""

    def _iteration(self, engine: Engine, batchdata: Any) -> dict[str, Any]:
        return {}


def kept_weights(output: Path, keep: str, metrics: list[float], *, patience: int) -> tuple[list[float], int]:
    """The metrics whose weights were written, and the epoch in which the training ended."""
    network, written = torch.nn.Linear(1, 1), []
    trainer, evaluator = Engine(lambda engine, batch: None), Validation("cpu", [0], decollate=False)
    settings = {"metric": "swd", "better": "lower", "patience": patience, "keep": keep}
    BestWeights(output / "model.pt", network=network, **settings).attach(trainer, evaluator)

    @evaluator.on(Events.EPOCH_COMPLETED)
    def measure(engine: Engine) -> None:
        engine.state.metrics = {"swd": metrics[trainer.state.epoch - 1]}

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        torch.nn.init.constant_(network.weight, engine.state.epoch)
        evaluator.run(engine.state.epoch)
        if torch.load(output / "model.pt", weights_only=True)["weight"] == engine.state.epoch:
            written.append(metrics[engine.state.epoch - 1])

    trainer.run([0], max_epochs=len(metrics))
    return written, trainer.state.epoch


def test_patience_follows_the_distance_whatever_is_kept(tmp_path) -> None:
    metrics = [3.0, 1.0, 2.0, 1.5, 0.5]
    assert kept_weights(tmp_path / "a", "best", metrics, patience=2) == ([3.0, 1.0], 4)
    assert kept_weights(tmp_path / "b", "best", metrics, patience=9) == ([3.0, 1.0, 0.5], 5)
    written, ended = kept_weights(tmp_path / "c", "last", metrics, patience=2)
    assert (written, ended) == ([3.0, 1.0, 2.0, 1.5], 4)


# ---------------------------------------------------------------- the alarm
def energy_alarm(cohort: Path, output: Path, caplog, answer: Any) -> tuple[float, bool]:
    """The mean energy distance of an epoch whose generator is `answer`, and whether it was warned of."""
    trainer = open_training(
        "", cohort, output, batch_size=32, epoch_length=3, max_epochs=1, **{"train#losses#energy_weight": 0.0}
    ).parser.get_parsed_content("train#trainer")
    draw = seeded_generator(5)
    trainer.inferer = lambda latent, network, *asked: answer(trainer, latent, network, asked, draw)
    with caplog.at_level("WARNING", logger="wcapsgan.trainer"):
        trainer.run()
    return trainer.state.metrics["energy"], "have collapsed" in caplog.text


def one_sample(trainer, latent, network, asked, draw) -> torch.Tensor:
    """A real one of the category, always the same: nothing is wrong with it but that it is alone."""
    chosen = (trainer.batches.dataset.category == asked[0][:, None]).int().argmax(dim=1)
    return trainer.batches.dataset.take(chosen).samples + 0 * network(latent, *asked)


def real_samples(trainer, latent, network, asked, draw) -> torch.Tensor:
    """Others of the category, which are all of about one size; with a gradient, as if generated."""
    places = [torch.nonzero(trainer.batches.dataset.category == k)[:, 0] for k in asked[0].tolist()]
    chosen = torch.stack([own[torch.randint(len(own), (), generator=draw)] for own in places])
    return trainer.batches.dataset.take(chosen).samples + 0 * network(latent, *asked)


def test_a_generator_of_one_sample_raises_the_alarm(ovals, tmp_path, caplog) -> None:
    energy, warned = energy_alarm(ovals, tmp_path, caplog, one_sample)
    assert energy > COLLAPSED
    assert warned


def test_samples_of_the_real_set_raise_no_alarm(ovals, tmp_path, caplog) -> None:
    energy, warned = energy_alarm(ovals, tmp_path, caplog, real_samples)
    assert abs(energy) < COLLAPSED / 2
    assert not warned


# ---------------------------------------------------------------- several processes
OBJECTIVES = {"gan": "NonSaturating", "wgan": "Wasserstein", "biggan": "Hinge", "capsulenets": "Margin"}


def outputs_of(
    name: str, cohort: Path, output: Path, *overlays: str, batch_size: int, **settings: Any
) -> tuple[list[dict[str, float]], list[torch.nn.Module]]:
    """Two steps of the objective `name` with the networks of W-CapsuleGAN, and these networks."""
    settings |= {"max_epochs": 1, "val_interval": 9, "amp": False, "batch_size": batch_size}
    settings["train#objective"] = {"_target_": f"wcapsgan.objectives.{OBJECTIVES[name]}"}
    if name == "wgan":
        settings["train#objective"]["penalty_interval"] = 1
    workflow = open_training("", cohort, output, *overlays, **settings)
    return steps_of(workflow), [workflow.parser.get_parsed_content(key) for key in ("network", "critic")]


def outputs_together(rank: int, cohort: Path, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Of all objectives, in two processes; nothing of their group is left afterwards."""
    torch.set_num_threads(1)
    join_processes(init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # The group has been joined; what else `multi_gpu_train.json` does at the beginning is for GPUs.
    begin = ["$sys.path.insert(0, str(@bundle_root))", "$monai.utils.set_determinism(@seed)"]
    together, wrapped = {}, []
    for name in OBJECTIVES:
        overlay = "multi_gpu_train.json"
        outputs, networks = outputs_of(name, cohort, folder, overlay, batch_size=4, initialize=begin)
        together[name] = outputs
        wrapped += networks
    leave_processes(wrapped)
    threads = {path.read_text(encoding="utf-8").strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert not {thread for thread in threads if "gloo" in thread}
    return together


def test_two_processes_give_the_losses_of_one(cohort, tmp_path) -> None:
    alone = {name: outputs_of(name, cohort, tmp_path, batch_size=8)[0] for name in OBJECTIVES}
    other = get_context("fork").Process(target=outputs_together, args=(1, cohort, tmp_path))  # no library anew
    other.start()
    try:
        together = outputs_together(0, cohort, tmp_path)
        other.join(60)
        assert other.exitcode == 0
    finally:
        other.kill()
    for name, steps in alone.items():
        for one, two in zip(steps, together[name], strict=True):
            assert two == pytest.approx(one, rel=1e-3, abs=1e-4), name
