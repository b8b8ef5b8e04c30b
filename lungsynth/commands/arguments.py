"""Arguments that several commands have, and what a command answers."""

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from lungsynth.config import SELECTION_STRATEGIES

__all__ = [
    "Command",
    "Report",
    "add_bundles",
    "add_cohort",
    "add_device",
    "add_dry_run",
    "add_label_check",
    "add_log_level",
    "add_own_grids",
    "add_seed",
    "add_selection",
    "add_tracking",
    "counted",
    "repeat_command",
    "tracking_uri",
]

_NO_RESULT = ("tracking_uri", "batch_size", "workers", "dry_run")  # options that change no result
_OLD_STRATEGIES = {"spread": "coverage", "similar": "nearest"}


class Report(NamedTuple):
    """What a command answers.

    Args:
        lines: for the standard output.
        problems: for the standard error: what was left out, under a line that counts it.
    """

    lines: Sequence[str] = ()
    problems: Sequence[str] = ()


class Command(NamedTuple):
    """A command.

    Args:
        description: what it does.
        add_arguments: to its parser.
        work: does it.
        stopped: what to say after Ctrl-C.
        out_is_file: whether its `--out` names a file; else a folder.
    """

    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], Report]
    stopped: str = "Stopped. The same command goes on from here."
    out_is_file: bool = False


def counted(problems: Sequence[str], what: str) -> list[str]:
    """Problems under a line that counts them; empty without any."""
    return [f"{len(problems)} {what}:", *(f"  {problem}" for problem in problems)] if problems else []


def repeat_command(
    name: str, add_arguments: Callable[[argparse.ArgumentParser], None], options: argparse.Namespace
) -> str:
    """The command line of these options, without what is left at its default, and with names for your paths.

    Args:
        name: of the command.
        add_arguments: its own.
        options: as they were read.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["lungsynth", name]
    for action in parser._actions:
        value = getattr(options, action.dest, action.default)
        if value == action.default or action.help == argparse.SUPPRESS or action.dest in _NO_RESULT:
            continue
        flag = action.option_strings[:1]
        for item in value if isinstance(value, list) else [value]:
            shown = action.dest.upper().rstrip("S") if isinstance(item, Path) else str(item)
            words += flag if isinstance(item, bool) else [*flag, shown]
    return shlex.join(words)


def tracking_uri(options: argparse.Namespace) -> str:
    """The MLflow store that the options, else the environment, else the default name; none without MLflow."""
    from lungsynth.tracking import DEFAULT_URI

    default = DEFAULT_URI if find_spec("mlflow") else "none"
    return options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def add_bundles(parser: argparse.ArgumentParser) -> None:
    """Adds `--bundles`."""
    parser.add_argument("--bundles", type=Path, help="folder of the bundles (default: those of this installation)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`, of the networks."""
    parser.add_argument(
        "--device",
        help="of the networks: cpu, cuda, cuda:1 or mps (default: LUNGSYNTH_DEVICE, else the first GPU, else the CPU)",
    )


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """Adds `--log-level`, which every command has."""
    parser.add_argument(
        "--log-level",
        default="warning",
        choices=("debug", "info", "warning", "error"),
        help="what is said on the standard error (default: warning)",
    )


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Adds `--tracking-uri`."""
    parser.add_argument(
        "--tracking-uri",
        help="MLflow store, or none (default: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db; none where MLflow is "
        "not installed)",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Adds `--seed`."""
    parser.add_argument("--seed", type=int, default=0, help="of everything random; same seed, same bytes (default: 0)")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Adds `--dry-run`."""
    parser.add_argument("--dry-run", action="store_true", help="say how much it makes, how long and how large; no more")


def add_cohort(parser: argparse.ArgumentParser, text: str) -> None:
    """Adds `--cohort`, with what it is for."""
    parser.add_argument("--cohort", type=Path, help=text)


def add_label_check(parser: argparse.ArgumentParser) -> None:
    """Adds `--no-label-check`."""
    parser.add_argument(
        "--no-label-check",
        "--no-gate",
        dest="label_check",
        action="store_false",
        help="do not ask lung_seg_bundle whether it still finds the nodules that it found before the CycleGAN",
    )


def add_own_grids(parser: argparse.ArgumentParser) -> None:
    """Adds `--own-grids`."""
    parser.add_argument(
        "--own-grids",
        action="store_true",
        help="real lungs keep the grids of their scans (default: all lungs share the generator's, so images stack)",
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds `--selection`, its old name `--ranking`, and `--candidates`."""
    add = parser.add_argument
    add(
        "--selection",
        dest="strategy",
        choices=SELECTION_STRATEGIES,
        help="which generated nodules and lungs are kept: each real one in turn takes the most similar (coverage, the "
        "default with a cohort), the paper's most similar of all (nearest), or all (none); copies of training samples "
        "never are",
    )
    add(
        "--ranking",
        dest="strategy",
        type=lambda text: _OLD_STRATEGIES.get(text, text),
        choices=SELECTION_STRATEGIES,
        help=argparse.SUPPRESS,
    )
    add("--candidates", type=int, help="generated for each one kept (default: 3 where they are ranked)")
