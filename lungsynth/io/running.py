"""What befalls a run from outside, decided here for all commands: signals, disks and folders, other runs, workers.

- SIGTERM ends a run as Ctrl-C does: blocks are left in order, so that nothing is half-written (`stoppable`).
- An error of the system becomes one sentence that names the path and what is wrong with it (`explained`).
- A folder belongs to one run at a time, until its process ends, however that ends (`FolderLock`).
- Worker processes leave Ctrl-C to their parent, and end with it, however it ends (`worker_pool`).
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lungsynth.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LOCK_FILE",
    "FolderLock",
    "Terminated",
    "check_place",
    "end_workers",
    "explained",
    "start_workers",
    "stoppable",
    "worker_pool",
]

LOCK_FILE = ".lock"
_PATIENCE_SECONDS = 5.0  # for another run that is only just claiming the folder
_END_SECONDS = 5.0  # that workers get to end before they are killed

# What is wrong, and the way out, by what the system says.
_SYSTEM_ERRORS = {
    errno.ENOSPC: ("the disk is full", "Free some space"),
    errno.EDQUOT: ("this user's share of the disk is used up", "Free some space"),
    errno.EFBIG: ("no larger file is allowed here, by the file system or by `ulimit -f`", "Raise that limit"),
    errno.EROFS: ("its file system can only be read", "Name a folder that can be written"),
    errno.EACCES: ("this user may not open or write it", "Change its permissions, or name another"),
    errno.EPERM: ("this user may not open or write it", "Change its permissions, or name another"),
    errno.ENOENT: ("it is not there, or not any more", "Name one that is there"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "Name another"),
    errno.EISDIR: ("it is a folder, where a file is needed", "Name a file"),
    errno.EEXIST: ("there is a file of this name already", "Name another"),
    errno.ENOTEMPTY: ("the folder is not empty", "Name another"),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "Name a shorter one"),
    errno.ELOOP: ("its links lead in a circle", "Name another"),
    errno.EMFILE: ("too many files are open at once", "Raise `ulimit -n`, or use fewer workers"),
    errno.ENFILE: ("too many files are open on this machine", "End other programs, or use fewer workers"),
    errno.ENOMEM: ("the memory does not suffice", "Use fewer workers"),
    errno.EIO: ("the disk reports an error", "Look after the disk, or name another folder"),
    errno.ESTALE: ("the network drive has lost it", "Mount it again"),
}
_FULL = "No space left on device"  # libraries that wrap the error keep its words


class Terminated(KeyboardInterrupt):
    """SIGTERM came. A kind of Ctrl-C, so that whatever lets that one pass lets this one pass, too."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets SIGTERM raise `Terminated` in the main thread while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first one is being obeyed
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def explained(error: BaseException) -> str | None:
    """One sentence for an error of the system, whatever it is wrapped in; None for any other error."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, MemoryError):
            return "The memory does not suffice. Use fewer workers, smaller batches or a larger machine."
        if isinstance(cause, OSError) and (known := _SYSTEM_ERRORS.get(cause.errno or 0)):
            names = [os.fsdecode(name) for name in (cause.filename, cause.filename2) if isinstance(name, str | bytes)]
            where = " and ".join(names) or "A file"
            return f"{where}: {known[0]}. {known[1]}; the same command goes on afterwards."
        if _FULL in str(cause):
            return (
                "A file could not be written: the disk is full. Free some space; the same command goes on afterwards."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def check_place(out: Path, *, is_file: bool = False) -> None:
    """Looks whether results may be written to a path, before hours of work.

    Args:
        out: a folder that may not be there yet, or a file.
        is_file: which of the two.

    Raises:
        InputError: when it is the other one, or no folder on the way to it lets this user write.
    """
    if is_file and out.is_dir():
        raise InputError(f"{out}: expected a file for `out`, got a folder. Name a file in it.")
    folder = out.parent if is_file else out
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: expected a folder for `out`, got a file. Name another one.")
    try:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    except OSError as error:
        raise InputError(f"{out}: {explained(error) or error}") from error
    if not there.is_dir():
        raise InputError(f"{out}: {there} is no folder, so nothing can be written below it. Name another `out`.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{out}: this user may not write into {there}. Change its permissions, or name another `out`.")


class FolderLock:
    """Keeps other runs out of a folder while a block runs.

    The system gives the lock up when the process ends, also by SIGKILL; the file that a killed one leaves locks nothing
    and goes with the next run. On systems and network drives without such locks, nothing is locked.

    Args:
        folder: is made when it is missing, and removed again when it was and stays empty.
        shared: several runs of this kind may share the folder; they keep out those that do not share.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self.folder, self.shared = folder, shared
        self._file: int | None = None
        self._made: list[Path] = []
        self._locked = fcntl is not None  # whether the system says who else is there

    def __enter__(self) -> "FolderLock":
        self._made = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._take()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            if self.alone() or not (self._locked or self.shared):
                with suppress(OSError):
                    (self.folder / LOCK_FILE).unlink()
            os.close(self._file)
            self._file = None
        with suppress(OSError):
            for place in self._made:
                place.rmdir()  # only when it is empty: nothing was written

    def alone(self) -> bool:
        """Whether no other run is in the folder; if so, none can enter it from now on."""
        if self._file is None or not self._locked:
            return False
        if self._try(self._file, exclusive=True):
            return True
        self._try(self._file, exclusive=False)  # a conversion that fails has lost what was there before
        return False

    def share(self) -> None:
        """Lets other runs of this kind enter."""
        if self._file is not None:
            self._try(self._file, exclusive=False)

    def _take(self) -> None:
        path, deadline = self.folder / LOCK_FILE, time.monotonic() + _PATIENCE_SECONDS
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            got = self._try(file, exclusive=True) or (self.shared and self._try(file, exclusive=False))
            if got and _is_at(file, path):
                self._file = file
                return
            os.close(file)
            if not got and (not self.shared or time.monotonic() > deadline):
                raise InputError(
                    f"{self.folder}: another run is writing into this folder. Wait until it has ended, or give another "
                    "`out`."
                )
            time.sleep(0.01)

    def _try(self, file: int, *, exclusive: bool) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a drive without locks
            self._locked = False
        return True


@contextmanager
def worker_pool(
    workers: int, start: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, at once when it ends by an error or by Ctrl-C.

    They are spawned, not forked: a forked one may inherit the locks of its parent's threads.

    Args:
        workers: how many.
        start: is called in each when it begins.
        arguments: of `start`.
    """
    pool = start_workers(workers, start, arguments)
    try:
        yield pool
    except BaseException:
        end_workers(pool)
        raise
    pool.shutdown()


def start_workers(
    workers: int, start: Callable[..., None] | None = None, arguments: tuple[Any, ...] = (), *, method: str = "spawn"
) -> ProcessPoolExecutor:
    """The processes of `worker_pool`, for one who ends them himself; `method` is how they are started."""
    return ProcessPoolExecutor(
        workers, mp_context=get_context(method), initializer=_begin_work, initargs=(start, arguments)
    )


def end_workers(pool: ProcessPoolExecutor) -> None:
    """Ends the processes of a pool at once, whatever they are at."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()


def _begin_work(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one of that name: the run before may have removed it as it ended."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False
