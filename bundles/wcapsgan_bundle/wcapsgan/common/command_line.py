# Copied from bundles/common by `make vendor`; edit it there.
# SPDX-License-Identifier: Apache-2.0
"""What `python -m monai.bundle run` leaves to a bundle: options that nobody knows, and an end by a signal.

MONAI takes every option for a new entry of the config, so that a misspelt one would change nothing without a word. And
a signal would end a training with a traceback. Both need what only MONAI's own frames know, which are looked up on the
stack; nothing happens where a config is used in another way.
"""

import difflib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

__all__ = ["begin", "unknown_options"]

_OF_MONAI = ("run_id", "init_id", "final_id", "meta_file", "logging_file", "tracking", "args_file", "workflow_type")
# Of MONAI's tracking, beside what the file of its settings names.
_OF_TRACKING = ("output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config")


def begin() -> None:
    """Is called first of all by a config's `initialize`.

    Raises:
        SystemExit: with status 2 and one sentence, when an option of the command line is of no use.
    """
    arguments = _arguments()
    if arguments is None:
        return
    config_file, options = arguments
    tracking = options.get("tracking")
    names = {name for name, value in options.items() if name not in _OF_MONAI and value is not None}
    known = _entries(config_file)
    if tracking is not None:
        known |= dict.fromkeys([*_OF_TRACKING, *_of_settings(tracking)])
    if complaints := list(unknown_options(names, known)):
        _leave(2, " ".join(complaints))
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)


def unknown_options(names: set[str], known: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each option that no entry of the configs has.

    Args:
        names: of the options: ids such as `max_epochs` or `network_def#channels`.
        known: the content of the configs. What a component (`_target_`) is not given there may be one of its arguments.
    """
    for name in sorted(names):
        if name in known:
            continue
        content: Any = known
        path = name.replace("::", "#").split("#")
        for depth, key in enumerate(path):
            last = depth == len(path) - 1
            if isinstance(content, Mapping) and key not in content and not (last and depth and "_target_" in content):
                similar = ["#".join([*path[:depth], match]) for match in difflib.get_close_matches(key, content, n=1)]
                meant = [*(_ids_of(key, known) if len(path) == 1 else ()), *similar]
                hint = f" Did you mean {meant[0]}?" if meant else ""
                yield f"The configs of this bundle have no entry {name}, so that --{name} would do nothing.{hint}"
                break
            content = content.get(key) if isinstance(content, Mapping) else None


def _ids_of(key: str, content: Mapping[str, Any], group: str = "") -> Iterator[str]:
    """The ids of the entries of that name in groups of the configs, at any depth."""
    for name, value in content.items():
        if group and name == key:
            yield f"{group}#{name}"
        if isinstance(value, Mapping) and not name.startswith("_"):
            yield from _ids_of(key, value, f"{group}#{name}".lstrip("#"))


def _arguments() -> tuple[Any, Mapping[str, Any]] | None:
    """The config files and options that `monai.bundle run` was called with; None where it was not."""
    frame: FrameType | None = sys._getframe()
    options: tuple[Any, Mapping[str, Any]] | None = None
    while frame is not None:
        if frame.f_globals.get("__name__") == "monai.bundle.scripts":
            if frame.f_code.co_name == "create_workflow":
                options = frame.f_locals.get("config_file"), frame.f_locals.get("_args") or {}
            elif frame.f_code.co_name == "run":
                return options
        frame = frame.f_back
    return None


def _entries(config_file: Any) -> dict[str, Any]:
    parser = ConfigParser()
    parser.read_config([str(file) for file in ensure_tuple(config_file)])
    return dict(parser.get())


def _of_settings(tracking: Any) -> list[str]:
    """Entries that a file of tracking settings adds."""
    if not isinstance(tracking, str) or not Path(tracking).is_file():
        return []
    return list(json.loads(Path(tracking).read_text(encoding="utf-8")).get("configs", {}))


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # the first one is being obeyed
    _leave(128 + number, "Stopped. The same command with --resume_from and the last resume_*.pt of output_dir goes on.")


def _leave(status: int, sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    logging.disable(logging.CRITICAL)  # MONAI's handlers would log a traceback
    raise SystemExit(status)
