"""Speed of wcapsgan_bundle: a training step beside the same one written plainly, routing alone, and generation.

python benchmarks/gan_training.py [--json FILE] [--cohort COHORT]

- `step`: critic step and generator step of `configs/train.json` on nodules (made-up ones, unless a COHORT is given), as
  shipped, beside the same networks, weights, draws and batch written plainly: float32, no autocast, no channels-last
  memory, no setting of the allocator, each sample made when it is needed, nearest neighbour and a convolution to
  upsample, separate operations after it, PyTorch's own second derivatives, and routing as public CapsuleGAN code has
  it (a loop that keeps all votes). `step_speedup_same_upsampling` is that beside plain code which has this bundle's
  upsampling by one transposed convolution already. The losses of all are compared.
- `routing`: one layer of the critic's size, forward and backward, time and peak memory of what it allocates.
- `generation`: nodules a second of the shipped sampler, and what the processor could do: its matrix products a second
  over the multiplications of a nodule.

Every way to do a step has a process of its own; they take turns, and each one's fastest round counts. Seconds are those
of the clock; `--cpu` counts processor seconds instead, for a machine that does other work, too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gan_training_plain import loop_routing, write_plainly
from monai.bundle import ConfigWorkflow
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "wcapsgan_bundle"
WAYS = ("shipped", "plain", "plain but for the upsampling")
TARGETS = {"step_speedup": ">= 2"}
COMPARED = ("loss", "critic_loss", "wasserstein", "gradient_penalty", "diameter_error_mm")


def main() -> int:
    arguments = parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.way:
        serve_steps(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        arguments.cohort = arguments.cohort or write_cohort(Path(folder) / "cohort")
        figures = time_steps(arguments)
        figures |= time_routing(arguments)
        figures |= time_generation(arguments)
    print_table(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--cohort", type=Path, help="take its training nodules instead of made-up ones")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores to use")
    parser.add_argument("--rounds", type=int, default=4, help="of the comparison, each of two steps")
    parser.add_argument("--cpu", action="store_true", help="count processor seconds instead of the clock's")
    parser.add_argument("--shared", action="store_true", help="with shared_forward, if the config has it off")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------- made-up nodules
def write_cohort(folder: Path) -> Path:
    """Blurred discs in noise, of three categories: what is in the samples does not change the speed."""
    (folder / "nodules").mkdir(parents=True)
    rng, entries = np.random.default_rng(0), []
    rows, columns = np.indices((64, 64)) - 31.5
    for index in range(48):
        radius = rng.uniform(3, 12)
        alpha = np.clip(radius - np.hypot(rows, columns) + 0.5, 0, 1)
        hu = -850 + alpha * (900 - 250 * (index % 3)) + rng.normal(0, 20, alpha.shape)
        np.savez(folder / f"nodules/{index}.npz", hu=hu.astype(np.int16)[None], alpha=alpha[None], largest=0)
        category = ("solid", "part_solid", "ground_glass")[index % 3]
        entries.append({"nodule": f"nodules/{index}.npz", "category": category})
    (folder / "nodules.json").write_text(json.dumps({"training": entries, "validation": entries}), encoding="utf-8")
    return folder


# ---------------------------------------------------------------- a step
def time_steps(arguments: argparse.Namespace) -> dict[str, Any]:
    workers = {way: start_worker(way, arguments) for way in WAYS}
    fastest, outputs = dict.fromkeys(WAYS, float("inf")), {way: [] for way in WAYS}
    try:
        for _ in range(arguments.rounds):
            for way, worker in workers.items():
                worker.stdin.write("step\n")
                worker.stdin.flush()
                answer = read_answer(worker)
                fastest[way] = min(fastest[way], *answer["seconds"])
                outputs[way] += answer["outputs"]
    finally:
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    shipped, *plain = WAYS
    return {
        "step_speedup": fastest[plain[0]] / fastest[shipped],
        "step_speedup_same_upsampling": fastest[plain[1]] / fastest[shipped],
        "step_seconds": fastest,
        **{f"difference of losses, {way}": differences(outputs[way], outputs[shipped]) for way in plain},
    }


def differences(plain: list[dict[str, float]], shipped: list[dict[str, float]]) -> dict[str, float]:
    """Of all terms in the first two steps, and of the critic's loss over all steps, relative to its first.

    Two steps see one update of each network; later the scores of two trainings drift apart, as their zero is arbitrary.
    """
    size = abs(plain[0]["critic_loss"])
    early = max(abs(plain[i][key] - shipped[i][key]) for key in COMPARED for i in (0, 1)) / size
    later = abs(np.mean([p["critic_loss"] - s["critic_loss"] for p, s in zip(plain, shipped, strict=True)])) / size
    if early > 0.02 or later > 0.05:
        raise ValueError(f"Expected equal losses (within 2 % and 5 %), got {early:.3f} and {later:.3f}.")
    return {"first two steps": float(early), "critic's loss, mean": float(later)}


def start_worker(way: str, arguments: argparse.Namespace) -> Any:
    command = [sys.executable, __file__, "--way", way, "--cohort", arguments.cohort, "--threads", arguments.threads]
    command += [option for option, wanted in (("--cpu", arguments.cpu), ("--shared", arguments.shared)) if wanted]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": paths}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL, **pipes)


def read_answer(worker: Any) -> dict[str, Any]:
    """The next line that is an answer: MONAI writes warnings to the same place."""
    for line in worker.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"A process for the steps has ended ({worker.wait()}). Run it alone: {worker.args}.")


def serve_steps(arguments: argparse.Namespace) -> None:
    """Two steps a line of input; the first step of all warms up, but its losses count."""
    trainer = open_trainer(arguments)
    clock = time.process_time if arguments.cpu else time.perf_counter
    iteration = 0
    for _ in sys.stdin:
        seconds, outputs = [], []
        for _ in range(2):
            iteration += 1
            start = clock()
            outputs.append(trainer.step(iteration))
            seconds.append(clock() - start)
        print(json.dumps({"seconds": seconds, "outputs": outputs}), flush=True)


def open_trainer(arguments: argparse.Namespace) -> Any:
    plain = arguments.way != "shipped"
    settings: dict[str, Any] = {}
    if plain:
        settings = {
            "amp": False,
            "network": "$@network_def.to(@device)",
            "critic": "$@critic_def.to(@device)",
            "initialize": ["$sys.path.insert(0, str(@bundle_root))", "$monai.utils.set_determinism(@seed)"],
        }
    if arguments.shared:
        settings["train#critic_schedule#shared_forward"] = True
    workflow = open_workflow("train", dataset_dir=str(arguments.cohort), **settings)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    if plain:
        write_plainly(trainer, plain_upsampling=arguments.way == WAYS[1])
    return trainer


def open_workflow(kind: str, **settings: Any) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / f"{'inference' if kind == 'infer' else kind}.json"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        device="cpu",
        **settings,
    )
    workflow.initialize()
    return workflow


def time_routing(arguments: argparse.Namespace) -> dict[str, float]:
    sys.path.insert(0, str(BUNDLE))
    from wcapsgan.capsules import RoutingCapsules

    torch.manual_seed(0)
    layer, poses = RoutingCapsules(256, 8, 4, 16), torch.randn(64, 256, 8, requires_grad=True)
    ways = {"shipped": lambda: layer(poses), "loops": lambda: loop_routing(layer, poses)}
    if not torch.allclose(*(way() for way in ways.values()), atol=1e-4, rtol=1e-3):
        raise ValueError("Expected both ways of routing to agree, got different capsules.")
    seconds, peaks = {}, {}
    for name, way in ways.items():
        passes = [timed(lambda way=way: way().sum().backward(), arguments) for _ in range(20)]
        seconds[name], peaks[name] = min(passes), peak_bytes(lambda way=way: way().sum().backward())
    return {
        "routing_speedup": seconds["loops"] / seconds["shipped"],
        "routing_memory_ratio": peaks["loops"] / peaks["shipped"],
        "routing_peak_megabytes": {name: peak / 1e6 for name, peak in peaks.items()},
    }


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that tensors of a run hold at once, from the allocations that the profiler sees."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def timed(run: Callable[[], Any], arguments: argparse.Namespace) -> float:
    clock = time.process_time if arguments.cpu else time.perf_counter
    start = clock()
    run()
    return clock() - start


# ---------------------------------------------------------------- generation
def time_generation(arguments: argparse.Namespace) -> dict[str, float]:
    """Of a network of random weights, so that no weight file is needed."""
    with tempfile.TemporaryDirectory() as folder:
        parser = open_workflow("infer", ckpt_path=f"{folder}/model.pt").parser
        network = parser.get_parsed_content("network_def")
        network.diameter_quantiles.copy_(torch.linspace(4, 25, 101).expand_as(network.diameter_quantiles))
        torch.save(network.state_dict(), f"{folder}/model.pt")
        sampler = parser.get_parsed_content("sampler")
    seeds = list(range(64))
    asked = (seeds, [sampler.categories[seed % len(sampler.categories)] for seed in seeds], [None] * len(seeds))
    sampler(*asked)
    seconds = min(timed(lambda: sampler(*asked), arguments) for _ in range(arguments.rounds))
    batch = sampler.network_batch_size
    inputs = (torch.randn(batch, network.latent_dim), torch.zeros(batch, dtype=torch.int64), torch.full((batch,), 8.0))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        sampler.network(*inputs)
    operations = counter.get_total_flops() / batch
    limit = matmul_operations_per_second(arguments) / operations
    return {
        "nodules_per_second": len(seeds) / seconds,
        "generation_share_of_limit": len(seeds) / seconds / limit,
        "million_multiplications_a_nodule": operations / 2e6,
    }


def matmul_operations_per_second(arguments: argparse.Namespace) -> float:
    """Of float32, the type that the sampler computes in."""
    a, b = torch.randn(2, 1536, 1536)
    return 2 * 1536**3 / min(timed(lambda: a @ b, arguments) for _ in range(8))


def print_table(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, number in value.items():
                print(f"    {key:<44} {number:,.4f}")
        else:
            print(f"{name:<48} {value:>10.4g}  {TARGETS.get(name, '')}")


if __name__ == "__main__":
    sys.exit(main())
