"""Runs one command in a forked child under limits, and says what was wrong with how it ended.

A fork of a process that has imported everything costs milliseconds, where a new process would take seconds; what a case
does to its process, a crash included, ends with it.
"""

import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 20.0
MEGABYTES = 2048
_IMPORTED_MEGABYTES = 800  # that count of what a child begins with: the process of a long test has more
_LONGEST_SECONDS = 600.0  # of wall time, however busy the machine
_SPARE_BYTES = 4 << 30  # address space beyond what the child begins with: stops what would fill the machine
_CLASS_NAME = re.compile(r"\b[A-Z][A-Za-z]*(?:Error|Exception)\b|\bTraceback\b|<class '")
_LOG = re.compile(r"^(WARNING|INFO|DEBUG|ERROR) |Warning: |^  warnings\.warn|^\s*$|it/s|s/it|\d+%\|")


@dataclass
class Ending:
    """How a command ended.

    Args:
        status: its exit status; None when it was killed for want of time, negative for the signal that ended it.
        seconds: of wall time.
        megabytes: largest resident memory; of what its parent had, at most `_IMPORTED_MEGABYTES` count.
        told: what it wrote to its standard error.
        faults: what was wrong, in words; empty when all is well.
    """

    status: int | None
    seconds: float
    megabytes: float
    told: str
    faults: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """Lines of the standard error that are neither a log nor a progress bar."""
        lines = [line.rpartition("\r")[2] for line in self.told.split("\n")]
        return [line for line in lines if not _LOG.search(line)]


def run_case(
    command: Callable[[], int], folder: Path, *, out: str = "out", outside: Path | None = None, seconds: float = SECONDS
) -> Ending:
    """Runs a command in a child and looks at how it ended and at what it left.

    Args:
        command: returns an exit status.
        folder: of the case; the child's working folder is `cwd` in it. Nothing in it may change but `out`.
        out: name of the folder in it that the command may write to.
        outside: a folder that nothing may be written to.
        seconds: that it may take.
    """
    (folder / "cwd").mkdir(exist_ok=True)
    before = listed(folder, without=out), listed(outside) if outside else {}
    ending = _run(command, folder, seconds)
    after = listed(folder, without=out), listed(outside) if outside else {}
    ending.faults += faults_of(ending)
    for old, new in zip(before, after, strict=True):
        changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        ending.faults += [f"changed outside of OUT: {name}" for name in changed]
    ending.faults += [f"left behind: {name}" for name in leftovers(folder / out)]
    return ending


def faults_of(ending: Ending) -> list[str]:
    """What is wrong with a status, its sentence, its time and its memory."""
    faults = []
    if ending.status is None:
        faults.append(f"still at work after {ending.seconds:.0f} s")
    elif ending.status not in (0, 2):
        faults.append(f"status {ending.status}")
    if ending.status == 2 and len(ending.sentences) != 1:
        faults.append(f"{len(ending.sentences)} sentences in place of one")
    if (name := _CLASS_NAME.search("\n".join(ending.sentences))) is not None:
        faults.append(f"words of Python: {name[0]}")
    if ending.megabytes > MEGABYTES:
        faults.append(f"{ending.megabytes:.0f} MB of memory")
    return faults


def leftovers(out: Path) -> list[str]:
    """Temporary files and locks in a folder, and the folder itself when it is empty."""
    if not out.is_dir():
        return []
    found = [path for pattern in (".*.tmp", ".*.part", "*.part_*", ".lock") for path in out.rglob(pattern)]
    empty = [] if any(out.iterdir()) else [out]
    return sorted(str(path.relative_to(out.parent)) for path in (*found, *empty))


def listed(folder: Path, *, without: str = "") -> Mapping[str, tuple[int, int]]:
    """Size and time of change of each file below a folder, by name, but for its own logs and `without`."""
    skipped = {without, "stdout.txt", "stderr.txt", "cwd"}
    facts = {}
    for root, _, names in os.walk(folder):
        relative = Path(root).relative_to(folder)
        if relative.parts[:1] and relative.parts[0] in skipped:
            continue
        for name in names:
            if not relative.parts and name in skipped:
                continue
            status = os.lstat(Path(root) / name)
            facts[str(relative / name)] = (status.st_size, status.st_mtime_ns)
    return facts


def _run(command: Callable[[], int], folder: Path, seconds: float) -> Ending:
    sys.stdout.flush()
    sys.stderr.flush()
    started, begun = time.monotonic(), _resident_megabytes()
    child = os.fork()
    if child == 0:
        _work(command, folder)
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        took = time.monotonic() - started
        if ended or _spent(child, took) > seconds:
            break
        time.sleep(0.003)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        _, _, usage = os.wait4(child, 0)
    told = (folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")
    code = os.waitstatus_to_exitcode(status) if ended else None
    own = usage.ru_maxrss / 1024 - max(0.0, begun - _IMPORTED_MEGABYTES)
    return Ending(status=code, seconds=took, megabytes=own, told=told)


def _resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / (1 << 20)


def _spent(child: int, took: float) -> float:
    """Seconds that a child has taken: of its processor where others keep the machine busy, else of wall time."""
    if took <= SECONDS or took > _LONGEST_SECONDS or os.getloadavg()[0] <= (os.cpu_count() or 1):
        return took
    fields = Path(f"/proc/{child}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(command: Callable[[], int], folder: Path) -> None:
    """The child: never returns."""
    status = 70
    try:
        os.setpgid(0, 0)
        for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), number)
        sys.stdout, sys.stderr = open(1, "w", encoding="utf-8"), open(2, "w", encoding="utf-8")  # noqa: SIM115
        os.chdir(folder / "cwd")
        limit_memory()
        status = command()
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def limit_memory() -> None:
    """Bounds the address space of this process, so that a case cannot fill the machine."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def fresh(folder: Path) -> Path:
    """An empty folder of this name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
