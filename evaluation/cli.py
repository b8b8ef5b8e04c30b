"""The command line: `lungsynth-eval COMMAND`, and the scripts that call single commands.

Messages of the library name parameters (`count`), which become flags (`--count`) in `lungsynth.commands.command`. Heavy
packages are imported when a command works, so that `--help` need not wait for them.

Statuses are those of `lungsynth.cli`.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lungsynth.cli import run_commands
from lungsynth.commands.command import Command, Report, add_bundles, add_tracking, tracking_uri
from lungsynth.config import default_bundles

if TYPE_CHECKING:
    from evaluation.runner import EvaluationResult

__all__ = ["COMMANDS", "main"]

_WEIGHTS = Path(__file__).resolve().parents[1] / "benchmarks" / "weights"
_COUNTS = {"nodules": 200, "lungs": 200, "slices": 67}  # of each category: 67 of three are the paper's 200
T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lungsynth-eval COMMAND ...` and returns its status."""
    return run_commands(COMMANDS, arguments, prog="lungsynth-eval", description="Evaluation of lungsynth.")


# Arguments that several commands have


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cohort", type=Path, required=True, help="folder written by `lungsynth prepare`")
    add("--out", type=Path, required=True, help="folder of the results; one left unfinished goes on")
    add_bundles(parser)
    add(
        "--split",
        "--part",
        choices=("test", "validation"),
        default="test",
        help="validation: to choose weights and thresholds (default: test)",
    )
    add("--seed", type=int, default=0, help="of everything random (default: 0)")


def _add_methods(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--weights",
        type=Path,
        default=_WEIGHTS,
        help="folder with the weights of the methods beside the product's: NAME.pt (segmentation), nodules_NAME.pt, "
        "lungs_NAME.pt or slices_NAME.pt, each with its .json (default: the repository's)",
    )
    add("--methods", type=_list_of(str), help="names, separated by commas (default: all that have weights)")
    add(
        "--require-held-out",
        action="store_true",
        help="refuse methods that may have been trained on the evaluated patients",
    )
    add_tracking(parser)


def _list_of(kind: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def read(text: str) -> tuple[T, ...]:
        return tuple(kind(item) for item in text.split(","))

    read.__name__ = f"list of {kind.__name__}"
    return read


def _settings(options: argparse.Namespace, config: Callable[..., T]) -> T:
    """A configuration whose fields are the options."""
    ignored = {"command", "parser", "tracking_uri", "log_level"}
    values = {name: value for name, value in vars(options).items() if name not in ignored}
    if "bundles" in values:
        values["bundles"] = values["bundles"] or default_bundles()
    return config(**values)


def _report(result: "EvaluationResult") -> Report:
    from lungsynth.tracking import ui_command

    lines = [result.markdown, f"Table            {result.out / result.name}.md and .json"]
    if result.pictures:
        lines.append(f"Pictures         {', '.join(str(picture) for picture in result.pictures)}")
    if result.tracking_uri not in (None, "none"):
        lines.append(f"Open the UI with {ui_command(str(result.tracking_uri))}")
    return Report(lines, result.problems)


# Table I and cross-validation


def _add_segmentation(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    _add_methods(parser)
    parser.add_argument("--composites", type=int, default=200, help="slices with a known nodule (default: 200)")


def _segmentation(options: argparse.Namespace) -> Report:
    from evaluation.segmentation.run import SegmentationConfig, evaluate_segmentation

    return _report(evaluate_segmentation(_settings(options, SegmentationConfig), tracking_uri=tracking_uri(options)))


def _add_folds(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folds", type=Path, nargs="+", help="folders that `segmentation` wrote, one for each fold")
    add("--out", type=Path, required=True, help="folder of the results")
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def _folds(options: argparse.Namespace) -> Report:
    from evaluation.segmentation.folds import evaluate_folds

    return _report(evaluate_folds(options.folds, options.out, seed=options.seed))


# Tables II and III


def _generation_command(kind: str, description: str) -> Command:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        _add_common(parser)
        _add_methods(parser)
        add = parser.add_argument
        add(
            "--count",
            type=int,
            default=_COUNTS[kind],
            help="generated samples of each category, beside those matched to held-out ones (default: %(default)s)",
        )
        if kind == "slices":
            add("--slices", type=Path, help="folder of `lungsynth-eval compose-slices` (default: made in OUT/.parts)")
        add(
            "--features",
            default="domain",
            help="domain, inception (needs torch-fidelity and its weights) or a TorchScript file (B, 1, S, S) in "
            "[-1, 1] -> (B, F) (default: domain)",
        )
        parser.set_defaults(kind=kind)

    return Command(description, add_arguments, _generation)


def _generation(options: argparse.Namespace) -> Report:
    from evaluation.generation.run import GenerationConfig, evaluate_generation

    return _report(evaluate_generation(_settings(options, GenerationConfig), tracking_uri=tracking_uri(options)))


# Nodules in three dimensions


def _add_cubes(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    add_tracking(parser)


def _cubes(options: argparse.Namespace) -> Report:
    from evaluation.cubes import CubesConfig, evaluate_cubes

    return _report(evaluate_cubes(_settings(options, CubesConfig), tracking_uri=tracking_uri(options)))


def _add_compose_slices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cohort", type=Path, required=True, help="folder written by `lungsynth prepare`")
    add("--out", type=Path, required=True, help="folder of the slices; one left unfinished goes on")
    add("--count", type=int, default=400, help="training slices of each category (default: 400)")
    add("--held-out", type=int, default=50, help="validation and test slices of each category, each (default: 50)")
    add("--seed", type=int, default=0, help="same seed, same bytes (default: 0)")


def _compose_slices(options: argparse.Namespace) -> Report:
    from evaluation.composed_slices import ComposedSliceConfig, compose_slices

    config, lines = _settings(options, ComposedSliceConfig), []
    for split, counts in compose_slices(config).items():
        lines.append(f"{split:16} " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    lines.append(f"Slices           {config.out / 'slices.json'}, real ones {config.out / 'diseased.json'}")
    lines.append(f"To look at       {config.out / 'montage.png'}")
    return Report(lines)


def _add_train_features(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("kind", choices=("nodules", "lungs"))
    add("--cohort", type=Path, required=True, help="folder written by `lungsynth prepare`")
    add("--out", type=Path, required=True, help="folder of the weights")
    add("--epochs", type=int, help="passes over the data (default: 16 for nodules, 60 for lungs)")
    add("--seed", type=int, default=0, help="of everything random (default: 0)")


def _train_features(options: argparse.Namespace) -> Report:
    from evaluation.features import EPOCHS, make_features

    logging.getLogger().setLevel(logging.INFO)
    epochs = options.epochs or EPOCHS[options.kind]
    path, validation = make_features(options.cohort, options.kind, options.out, epochs=epochs, seed=options.seed)
    lines = [f"{path} ({path.stat().st_size / 1000:.0f} kB)"]
    for name, figure in validation.items():
        lines.append(f"{name}: {figure}")
    return Report(lines)


# Anatomy of lungs


def _add_anatomy(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--cohort",
        type=Path,
        required=True,
        help="folder written by `lungsynth prepare`, from scans at full resolution",
    )
    add("--out", type=Path, required=True, help="folder of the results")
    add_bundles(parser)
    add(
        "--images",
        type=Path,
        nargs="+",
        default=(),
        help="lungs to judge: npz with hu and mask (N, S, S), a folder of such, or a folder of `lungsynth generate`",
    )
    add(
        "--split",
        choices=("held_out", "test", "validation"),
        default="held_out",
        help="who judges: validation and test patients together, or one of them (default: held_out)",
    )
    add("--no-generator", dest="generator", action="store_false", help="judge the images alone")
    add("--controls", action="store_true", help="judge blurred and noisy real slices, too: a judge must notice them")
    add("--count", type=int, default=64, help="lungs of each, 2 to 64 (default: 64)")
    add("--seed", type=int, default=0, help="of everything random (default: 0)")
    add_tracking(parser)


def _anatomy(options: argparse.Namespace) -> Report:
    from evaluation.anatomy.run import AnatomyConfig, evaluate_anatomy

    options.images = tuple(options.images)
    return _report(evaluate_anatomy(_settings(options, AnatomyConfig), tracking_uri=tracking_uri(options)))


# Compositing and enhancement


def _add_boundary(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("catalogue", type=Path, help="catalogue.parquet")
    add("--cohort", type=Path, required=True, help="its validation and test patients are the reference")
    add("--out", type=Path, required=True, help="folder for boundary.csv, boundary.json and worst.png")
    add("--library", type=Path, help="folder with assets/ (default: the catalogue's)")
    add("--samples", type=int, default=400, help="samples to render (default: 400)")
    add("--unmatched", action="store_true", help="without noise and edge of the lung, for comparison")


def _boundary(options: argparse.Namespace) -> Report:
    from evaluation.boundary import BoundaryReference, measure_catalogue, real_patches, write_boundary_report
    from lungsynth.compositing.render import Renderer
    from lungsynth.placement.assets import AssetLibrary
    from lungsynth.placement.catalogue import read_catalogue

    reference = BoundaryReference.of(real_patches(options.cohort))
    renderer = Renderer(AssetLibrary(options.library or options.catalogue.parent), matched=not options.unmatched)
    report = measure_catalogue(read_catalogue(options.catalogue), renderer, reference, samples=options.samples)
    write_boundary_report(report, options.out)
    scores = report.nodules["score"]
    lines = [f"{len(scores)} composited nodules against {len(reference.real)} real ones"]
    lines.append(f"boundary score: median {scores.median():.2f}, at most 1 in {(scores <= 1).mean():.0%}")
    lines.append(f"{'':14}{'real':>8}{'composited':>12}{'in middle 90 %':>16}{'larger than real':>18}")
    for name, row in report.features.items():
        lines.append(
            f"{name:14}{row['real_median']:8.2f}{row['composited_median']:12.2f}{row['within_middle_90']:16.0%}"
            f"{row['larger_than_real']:18.2f}"
        )
    lines.append(f"Worst      {options.out / 'worst.png'}")
    return Report(lines)


def _add_enhancement(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    add_tracking(parser)  # accepted by all tables; this one is not tracked
    parser.add_argument("--composites", type=int, default=1000, help="slices with a known nodule (default: 1000)")


def _enhancement(options: argparse.Namespace) -> Report:
    from evaluation.enhancement import EnhancementEvaluationConfig, evaluate_enhancement

    return _report(evaluate_enhancement(_settings(options, EnhancementEvaluationConfig)))


# Utility


def _add_utility(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    add_tracking(parser)
    add = parser.add_argument
    add("--experiments", type=_list_of(str), default=("classification", "detection"), help="default: both")
    add("--patients", type=_list_of(int), default=(10, 25, 50), help="of the classifier (default: 10,25,50)")
    add("--doses", type=_list_of(float), default=(0, 1, 3, 10), help="added for each real one (default: 0,1,3,10)")
    add("--per-category", type=int, default=200, help="the paper's dose (default: 200; 0 for none)")
    add("--seeds", type=int, default=5, help="choices of patients for the classifier (default: 5)")
    add("--steps", type=int, default=300, help="of the optimiser, each classifier (default: 300)")
    add(
        "--network", choices=("plain", "small", "dense_unet"), default="plain", help="of the detectors (default: plain)"
    )
    add("--curve-patients", type=_list_of(int), default=(10, 25, 50, 100, 200, 0), help="real only; 0 for all")
    add("--detection-patients", type=_list_of(int), default=(10, 25, 50, 100), help="of them, those with every arm")
    add("--window-doses", type=_list_of(float), default=(0.15, 0.3, 0.6), help="shares of windows with a nodule more")
    add("--families", type=_list_of(str), default=(), help="of the detectors' arms (default: all)")
    add("--detection-seeds", type=int, default=3, help="choices of patients for the detectors (default: 3)")
    add("--detection-steps", type=int, default=1500, help="each detector (default: 1500)")
    add("--detection-batch-size", type=int, default=16, help="of a step of them (default: 16)")
    add("--detection-size-px", type=int, default=96, help="side of what they are trained on (default: 96)")
    add("--windows", type=int, default=1500, help="with inserted nodules, of each kind (default: 1500)")
    add("--no-train", dest="train", action="store_false", help="report on the detectors that are trained")
    add("--generators", type=Path, help="folder with p10-s0.pt, p10-s0.json, ...: generators trained on these patients")


def _utility(options: argparse.Namespace) -> Report:
    from evaluation.utility.run import UtilityConfig, evaluate_utility

    return _report(evaluate_utility(_settings(options, UtilityConfig), tracking_uri=tracking_uri(options)))


# Privacy


def _add_privacy(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cohort", type=Path, required=True, help="folder written by `lungsynth prepare`, of the generator's training")
    add("--out", type=Path, required=True, help="folder of the cards")
    add_bundles(parser)
    add("--count", type=int, default=200, help="generated samples of each category (default: 200)")
    add("--seed", type=int, default=0, help="of everything random (default: 0)")


def _privacy(options: argparse.Namespace) -> Report:
    from evaluation.privacy import PrivacyConfig, evaluate_privacy

    result = evaluate_privacy(_settings(options, PrivacyConfig))
    return Report(
        [result.markdown, f"Cards            {result.out / 'privacy_*.md'} and privacy.json"], result.problems
    )


# Trials


def _add_trials(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cohort", type=Path, required=True, help="folder written by `lungsynth prepare`, with windows")
    add("--out", type=Path, required=True, help="folder of the results; one left unfinished goes on")
    add_bundles(parser)
    add("--per-cell", type=int, default=30, help="nodules of each size and texture at most (default: 30)")
    add("--patients", type=Path, help="file with ids of patients to whom it is limited (default: all held-out ones)")
    add("--seed", type=int, default=0, help="of everything random (default: 0)")
    _add_methods(parser)


def _trials(options: argparse.Namespace) -> Report:
    from evaluation.trials.run import TrialEvaluationConfig, evaluate_trials

    return _report(evaluate_trials(_settings(options, TrialEvaluationConfig), tracking_uri=tracking_uri(options)))


COMMANDS: dict[str, Command] = {
    "segmentation": Command("Table I: methods of segmentation.", _add_segmentation, _segmentation),
    "nodules": _generation_command("nodules", "Table II: generators of nodules."),
    "lungs": _generation_command("lungs", "Table II: generators of lungs."),
    "slices": _generation_command("slices", "Table III: whole diseased slices, in one piece, in one stage and in two."),
    "cubes": Command("Generated nodules in three dimensions.", _add_cubes, _cubes),
    "anatomy": Command(
        "Lungs at 0.7 mm by what a radiologist can check, and by patches of lung.", _add_anatomy, _anatomy
    ),
    "folds": Command("Cross-validation: evaluations of several folds as one.", _add_folds, _folds),
    "enhancement": Command(
        "What the CycleGAN does to labels: nodules kept, lost, invented.", _add_enhancement, _enhancement
    ),
    "utility": Command("Does synthetic data help with few patients?", _add_utility, _utility),
    "privacy": Command(
        "Privacy cards: what generated nodules and lungs give away of the patients of the training.",
        _add_privacy,
        _privacy,
    ),
    "trials": Command(
        "Does a virtual trial hold for real nodules? Methods on both, on the same slices.", _add_trials, _trials
    ),
    "boundary": Command(
        "Whether the boundaries of a catalogue's nodules are visible, compared with real nodules.",
        _add_boundary,
        _boundary,
    ),
    "compose-slices": Command(
        "Composes whole slices with nodules: real nodules on real normal slices of one split of a cohort.",
        _add_compose_slices,
        _compose_slices,
    ),
    "train-features": Command(
        "Trains the feature network that generated samples are compared with, on training patients alone.",
        _add_train_features,
        _train_features,
    ),
}
