"""What a command is, how every command is run, and the arguments that several have.

Messages of the library name parameters (`count`), which become flags (`--count`) here.

Status: 0; 2 after bad input or an error of the system, with one sentence; 130 after Ctrl-C, 143 after SIGTERM; 141
when nobody reads the answer. What a command answers is its standard output: this is the one module that prints.
"""

import argparse
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

from lungsynth.bundles import DEVICE_VARIABLE
from lungsynth.config import SELECTION_STRATEGIES
from lungsynth.errors import InputError
from lungsynth.io.running import Terminated, check_place, explained, stoppable

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
    "make_parser",
    "repeat_command",
    "run_command",
    "run_commands",
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


def run_commands(
    commands: Mapping[str, Command], arguments: Sequence[str] | None, *, prog: str, description: str
) -> int:
    """Runs the command that the arguments name, and returns its status.

    Args:
        commands: by name.
        arguments: those of the process when None.
        prog: name of the program.
        description: of the program.
    """
    parser = make_parser(commands, prog=prog, description=description)
    options = parser.parse_args(arguments)
    return _work(options.command, options, options.parser)


def make_parser(commands: Mapping[str, Command], *, prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with a sub-command for each command; `options.command` and `options.parser` are those that are named."""
    parser = _Parser(prog=prog, description=description)
    parser.add_argument("--version", action="version", version=version("lungsynth"))
    names = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in commands.items():
        own = names.add_parser(name, help=command.description, description=command.description)
        command.add_arguments(own)
        add_log_level(own)
        own.set_defaults(command=command, parser=own)
    return parser


def run_command(command: Command, arguments: Sequence[str] | None = None) -> int:
    """Reads the arguments of one command, for a script of its own, works, and returns the status.

    Args:
        command: what to do.
        arguments: those of the process when None.
    """
    parser = _Parser(description=command.description)
    command.add_arguments(parser)
    add_log_level(parser)
    return _work(command, parser.parse_args(arguments), parser)


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


class _Parser(argparse.ArgumentParser):
    """Answers wrong arguments with one sentence, without the usage before it; sub-commands get the same kind."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}. `{self.prog} --help` tells more.\n")


def _work(command: Command, options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s %(message)s")
    _show_progress(options.log_level)
    if device := getattr(options, "device", None):
        os.environ[DEVICE_VARIABLE] = device
    try:
        with stoppable():
            if (out := getattr(options, "out", None)) is not None:
                check_place(out, is_file=command.out_is_file)
            report = command.work(options)
        _print(report)
    except KeyboardInterrupt as stop:
        print(command.stopped, file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except BrokenPipeError:  # whoever reads the answer has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        sentence = str(error) if isinstance(error, InputError) else explained(error)
        if sentence is None:  # a defect of ours: its traceback is what a report needs
            raise
        print(" ".join(_with_flags(sentence, parser).split()), file=sys.stderr)
        return 2
    return 0


def _print(report: Report) -> None:
    for line in report.lines:
        print(line)
    for line in report.problems:
        print(line, file=sys.stderr)
    sys.stdout.flush()


def _show_progress(log_level: str) -> None:
    """A terminal hears of the start at once, then of each stage, with a bar; a log gets neither."""
    if sys.stderr.isatty():
        if log_level == "warning":
            logging.getLogger("lungsynth").setLevel(logging.INFO)
        print("Starting; what a command needs takes some seconds to load.", file=sys.stderr)
    else:
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, which no command has done yet


def _with_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """A message in which parameters of the library are the flags that set them."""
    flags = {action.dest: action.option_strings[0] for action in reversed(parser._actions) if action.option_strings}
    return re.sub(r"`(\w+)`", lambda match: flags.get(match[1], match[0]), message)
