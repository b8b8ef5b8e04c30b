"""Judges the stages of the product on patients that they never saw, beside trivial baselines and the paper.

python scripts/evaluate.py segmentation --cohort COHORT --out OUT
python scripts/evaluate.py nodules --cohort COHORT --out OUT
python scripts/evaluate.py lungs --cohort COHORT --out OUT
python scripts/evaluate.py slices --cohort COHORT --out OUT
python scripts/evaluate.py enhancement --cohort COHORT --out OUT
python scripts/evaluate.py utility --cohort COHORT --out OUT
python scripts/evaluate.py folds OUT [OUT ...] --out POOLED
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lungsynth.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; each table is a command of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_segmentation(commands)
    for kind, count in (("nodules", 200), ("lungs", 200), ("slices", 67)):
        _add_generation(commands, kind, count)
    _add_folds(commands)
    _add_enhancement(commands)
    _add_utility(commands)
    return parser.parse_args(arguments)


def _add_segmentation(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("segmentation", help="Table I: methods of segmentation")
    parser.set_defaults(judge=evaluate_segmentation)
    _add_common(parser)
    _add_methods(parser)
    parser.add_argument(
        "--composites", type=int, default=200, help="whole slices with a known nodule to make (default: 200)"
    )


def _add_generation(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", kind: str, count: int) -> None:
    titles = {"slices": "Table III: whole diseased slices, in one piece, in one stage and in two"}
    parser = commands.add_parser(kind, help=titles.get(kind, f"Table II: generators of {kind}"))
    parser.set_defaults(judge=evaluate_generation, kind=kind)
    _add_common(parser)
    _add_methods(parser)
    parser.add_argument(
        "--count",
        type=int,
        default=count,
        help="generated a category, beside those matched to held-out ones (default: %(default)s)",
    )
    if kind == "slices":
        parser.add_argument(
            "--slices", type=Path, help="folder of scripts/make_slices.py (default: made in OUT/.parts)"
        )
    parser.add_argument(
        "--features",
        default="domain",
        help="domain, inception (needs torch-fidelity and its weights) or a TorchScript file (B, 1, S, S) in [-1, 1] "
        "-> (B, F) (default: domain)",
    )


def _add_folds(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("folds", help="cross-validation: evaluations of several folds as one")
    parser.set_defaults(judge=evaluate_folds, tracking_uri=None)
    parser.add_argument("folds", type=Path, nargs="+", help="folders that `segmentation` wrote, one a fold")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def _add_enhancement(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("enhancement", help="what the CycleGAN does to labels: nodules kept, lost, invented")
    parser.set_defaults(judge=evaluate_enhancement)
    _add_common(parser)
    parser.add_argument("--composites", type=int, default=1000, help="whole slices with a known nodule (default: 1000)")


def _add_utility(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("utility", help="does synthetic data help who has few patients?")
    parser.set_defaults(judge=evaluate_utility)
    _add_common(parser)
    parser.add_argument("--experiments", type=_list(str), default=("classification", "segmentation"))
    parser.add_argument(
        "--patients", type=_list(int), default=(10, 25, 50), help="of the classifier (default: 10,25,50)"
    )
    parser.add_argument("--segmentation-patients", type=_list(int), default=(25,), help="default: 25")
    parser.add_argument(
        "--doses", type=_list(float), default=(0, 1, 3, 10), help="added a real one (default: 0,1,3,10)"
    )
    parser.add_argument("--per-category", type=int, default=200, help="the paper's dose (default: 200; 0 for none)")
    parser.add_argument("--seeds", type=int, default=5, help="choices of patients for the classifier (default: 5)")
    parser.add_argument("--segmentation-seeds", type=int, default=2, help="for the segmentation (default: 2)")
    parser.add_argument("--steps", type=int, default=300, help="of the optimiser, each classifier (default: 300)")
    parser.add_argument("--segmentation-steps", type=int, default=300, help="each segmentation (default: 300)")
    parser.add_argument("--lung-patients", type=int, default=2, help="who lend slices with lungs (default: 2)")
    parser.add_argument("--composites", type=int, default=150, help="slices to judge on (default: 150)")
    parser.add_argument(
        "--generators",
        type=Path,
        help="of the classifier: folder with p10-s0.pt, p10-s0.json, ...: generators trained on these patients",
    )
    parser.add_argument("--no-enhance", dest="enhance", action="store_false", help="leave out the CycleGAN")


def _list(kind: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def read(text: str) -> tuple[T, ...]:
        return tuple(kind(part) for part in text.split(","))

    read.__name__ = f"list of {kind.__name__}"
    return read


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cohort", type=Path, required=True, help="folder written by scripts/prepare.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables; one left unfinished goes on")
    parser.add_argument(
        "--bundles",
        type=Path,
        default=ROOT / "bundles",
        help="folder of the three bundles (default: this repository's)",
    )
    parser.add_argument(
        "--part",
        choices=("test", "validation"),
        default="test",
        help="validation: to choose weights and thresholds",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument(
        "--tracking-uri", help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db)"
    )


def _add_methods(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=Path,
        default=ROOT / "benchmarks" / "weights",
        help="folder with the weights of the methods beside this one: NAME.pt (segmentation), nodules_NAME.pt, "
        "lungs_NAME.pt or slices_NAME.pt, each with its .json (default: this repository's)",
    )
    parser.add_argument(
        "--methods",
        type=lambda text: tuple(text.split(",")),
        help="names, separated by commas (default: all that have weights)",
    )
    parser.add_argument(
        "--require-held-out",
        action="store_true",
        help="refuse methods that may have been trained on the judged patients",
    )


def evaluate_segmentation(options: dict[str, object], tracking_uri: str | None) -> None:
    """Evaluates, prints Table I, and says where everything stands."""
    # Imported here, because torch, MONAI and MLflow take seconds that --help need not wait for.
    from evaluation.segmentation.run import SegmentationSettings, evaluate_segmentation
    from lungsynth.tracking import DEFAULT_URI, ui_command

    result = evaluate_segmentation(SegmentationSettings(**options), tracking_uri=tracking_uri or DEFAULT_URI)  # type: ignore[arg-type]
    print(result.markdown)
    for problem in result.problems:
        print(problem, file=sys.stderr)
    print(f"Table            {result.out / 'table_1.md'} and {result.out / 'table_1.json'}")
    print(f"FROC             {result.out / 'froc.png'}")
    print(f"Largest errors   {result.out / 'errors' / 'errors.md'}")
    print(f"Open the UI with {ui_command(result.tracking_uri)}")


def evaluate_generation(options: dict[str, object], tracking_uri: str | None) -> None:
    """Evaluates, prints Table II or III, and says where everything stands."""
    from evaluation.generation.run import GenerationSettings, evaluate_generation
    from lungsynth.tracking import DEFAULT_URI

    result = evaluate_generation(GenerationSettings(**options), tracking_uri=tracking_uri or DEFAULT_URI)  # type: ignore[arg-type]
    print(result.markdown)
    print(f"Table            {result.out / result.name}.md and .json")
    print(f"Pictures         {', '.join(str(picture) for picture in result.pictures)}")


def evaluate_utility(options: dict[str, object], tracking_uri: str | None) -> None:
    """Trains with and without synthetic data, and prints what came of it."""
    from evaluation.utility.run import evaluate_utility
    from evaluation.utility.settings import UtilitySettings
    from lungsynth.tracking import DEFAULT_URI, ui_command

    result = evaluate_utility(UtilitySettings(**options), tracking_uri=tracking_uri or DEFAULT_URI)  # type: ignore[arg-type]
    print(result.markdown)
    print(
        f"Report           {result.out / 'utility.md'}, {result.out / 'utility.json'} and {result.out / 'utility.png'}"
    )
    print(f"Open the UI with {ui_command(result.tracking_uri)}")


def evaluate_folds(options: dict[str, object], tracking_uri: str | None) -> None:
    """Pools evaluations and prints the table."""
    from evaluation.segmentation.folds import evaluate_folds

    print(evaluate_folds(**options))  # type: ignore[arg-type]


def evaluate_enhancement(options: dict[str, object], tracking_uri: str | None) -> None:
    """Judges the enhancer and prints its figures."""
    from evaluation.enhancement import WAYS, EnhancementSettings, evaluate_enhancement

    settings = EnhancementSettings(**options)  # type: ignore[arg-type]
    result = evaluate_enhancement(settings)
    print(f"Composites       {result['composites']}, in which {result['nodules_found']} nodules are found")
    for way in WAYS:
        for name, share in ((key, result[way][key]) for key in ("labels_kept", "slices_with_invented")):
            if share["n"]:
                low, high = (f"{share[end]:.2%}" for end in ("low", "high"))
                print(f"{way:16} {name} {share['value']:.2%} [{low}, {high}], n = {share['n']}")
    for name, value in result["changes"].items():
        print(f"HU change        {name} {value:.2f}" if value is not None else f"HU change        {name} none")
    print(f"All figures      {settings.out / 'enhancement.json'}")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0, 2 after bad input, 130 after Ctrl-C.
    """
    options = vars(parse_args(arguments))
    judge, uri = options.pop("judge"), options.pop("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    options.pop("command")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        judge(options, uri)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
