"""The command line: `lungsynth COMMAND`.

The commands stand in `lungsynth.commands`; the scripts of the same jobs call them. Heavy packages are imported when a
command works, so that `--help` need not wait for them.
"""

from collections.abc import Mapping, Sequence

from lungsynth.commands.cohorts import PHANTOM, PREPARE, PSEUDO_LABEL
from lungsynth.commands.command import Command, make_parser, run_command, run_commands
from lungsynth.commands.insert import INSERT
from lungsynth.commands.package import PACKAGE
from lungsynth.commands.samples import EXPORT, GENERATE, PLAN
from lungsynth.commands.trial import TRIAL

__all__ = ["COMMANDS", "main", "make_parser", "run_command", "run_commands"]

COMMANDS: Mapping[str, Command] = {
    "prepare": PREPARE,
    "generate": GENERATE,
    "plan": PLAN,
    "export": EXPORT,
    "pseudo-label": PSEUDO_LABEL,
    "phantom": PHANTOM,
    "insert": INSERT,
    "trial": TRIAL,
    "package": PACKAGE,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lungsynth COMMAND ...` and returns its status."""
    return run_commands(COMMANDS, arguments, prog="lungsynth", description="Labelled synthetic lung CT.")
