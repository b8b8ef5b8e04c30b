"""Quality of the enhancer against the standard ResNet generator of CycleGAN, trained on the same data in the same time.

python benchmarks/enhance_quality.py --cohort COHORT --composites OUT [--minutes 8] [--json FILE]

OUT is a folder of `scripts/synthesize.py --no-enhance --spare-diseased`. Both are trained by cyclegan_bundle's
train.json with their own generators and nothing else changed, each for the same CPU minutes of one core, after a few
steps that tell how many epochs fit. The distance is the bundle's, to validation patients; its floor is that of the
training part's reals.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parent / "bundles" / "cyclegan_bundle"
GENERATORS = {"this bundle's": {}, "ResNet, 9 blocks, 64 channels": {"_target_": "enhance_resnet.ResnetGenerator"}}
EPOCH = 10  # steps
TRIAL = 6  # steps that are timed


def main() -> None:
    """Trains both, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--composites", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0, help="of CPU, each generator (default: 8)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.path += [str(HERE), str(BUNDLE)]
    rows = {name: trained(definition, args) for name, definition in GENERATORS.items()}
    floor = floor_of(args)
    print(
        "| generator | steps | CPU minutes | distance before | after | labels kept | HU changed, nodule | elsewhere |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        shown = [f"{row[key]:.4g}" for key in ("steps", "minutes", "distance_before", "distance", "labels_kept")]
        shown += [f"{row[key]:.1f}" for key in ("nodule_hu_change", "other_hu_change")]
        print(f"| {name} | {' | '.join(shown)} |")
    print(f"| *training reals (floor)* | - | - | - | {floor:.4g} | - | - | - |")
    if args.json:
        ours, resnet = rows.values()
        args.json.write_text(
            json.dumps({"ours": ours, "resnet9": resnet, "floor": floor}, indent=1) + "\n", encoding="utf-8"
        )


def trained(definition: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Figures of the last validation, after a training that fills the minutes."""
    _, seconds = _train(definition, args, epochs=1, length=TRIAL, validate=False)
    epochs = max(int(args.minutes * 60 / (statistics.median(seconds) * EPOCH)), 1)
    metrics, seconds = _train(definition, args, epochs=epochs, length=EPOCH, validate=True)
    return {"steps": len(seconds), "minutes": sum(seconds) / 60, **metrics}


def floor_of(args: argparse.Namespace) -> float:
    """The distance of the training part's reals to the validation part's: other patients, nothing generated."""
    from cyclegan.data import unpaired_entries

    folders = {"composite_dir": str(args.composites), "dataset_dir": str(args.cohort)}
    training = unpaired_entries(split="training", **folders)
    with tempfile.TemporaryDirectory() as out:
        workflow = _workflow({}, args, out, epochs=1, length=1)
        data = workflow.parser.get_parsed_content("validate#dataset#data")
        data["composites"] = training["reals"]
        evaluator = workflow.parser.get_parsed_content("validate#evaluator")
        evaluator.run()
    return float(evaluator.state.metrics["distance_before"])


def _train(
    definition: dict[str, Any], args: argparse.Namespace, *, epochs: int, length: int, validate: bool
) -> tuple[dict[str, float], list[float]]:
    """The last validation's figures, and the CPU seconds of each step."""
    begun: list[float] = []
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        workflow = _workflow(definition, args, out, epochs=epochs, length=length, validate=validate)
        trainer = workflow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda: begun.append(time.process_time()))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seconds.append(time.process_time() - begun[-1]))
        workflow.run()
        metrics = workflow.parser.get_parsed_content("validate#evaluator").state.metrics
    return {key: float(value) for key, value in metrics.items()}, seconds


def _workflow(
    definition: dict[str, Any], args: argparse.Namespace, out: str, *, epochs: int, length: int, validate: bool = True
) -> ConfigWorkflow:
    # The sidecar would state settings of the bundle's own generator.
    generators = {"network_def": definition, "F_def": definition, "sidecar#extra": {}} if definition else {}
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "train.json"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLE),
        dataset_dir=str(args.cohort),
        composite_dir=str(args.composites),
        output_dir=out,
        max_epochs=epochs,
        epoch_length=length,
        val_interval=epochs if validate else epochs + 1,
        patience=1_000_000,
        **{"ema#momentum": 0.9999},  # nearly the weights themselves: an average of few steps is mostly the start
        **generators,
    )
    workflow.initialize()
    return workflow


if __name__ == "__main__":
    main()
