"""The command line: `lungsynth COMMAND`, and how every command is run.

The commands stand in `lungsynth.commands`; the scripts of the same jobs call them. Messages of the library name
parameters (`count`), which become flags (`--count`) here. Heavy packages are imported when a command works, so that
`--help` need not wait for them.

Status: 0; 2 after bad input or an error of the system, with one sentence; 130 after Ctrl-C, 143 after SIGTERM; 141
when nobody reads the answer. What a command answers is its standard output: this is the one module that prints.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import NoReturn

from lungsynth.bundles import DEVICE_VARIABLE
from lungsynth.commands.arguments import Command, Report, add_log_level
from lungsynth.commands.cohorts import PHANTOM, PREPARE, PSEUDO_LABEL
from lungsynth.commands.package import PACKAGE
from lungsynth.commands.samples import EXPORT, GENERATE, PLAN
from lungsynth.errors import InputError
from lungsynth.io.running import Terminated, check_place, explained, stoppable

__all__ = ["COMMANDS", "main", "make_parser", "run_command", "run_commands"]

COMMANDS: Mapping[str, Command] = {
    "prepare": PREPARE,
    "generate": GENERATE,
    "plan": PLAN,
    "export": EXPORT,
    "pseudo-label": PSEUDO_LABEL,
    "phantom": PHANTOM,
    "package": PACKAGE,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lungsynth COMMAND ...` and returns its status."""
    return run_commands(COMMANDS, arguments, prog="lungsynth", description="Labelled synthetic lung CT.")


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
