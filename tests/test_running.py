"""What befalls a run from outside: signals, disks and folders, other runs, workers."""

import argparse
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lungsynth.cli import run_command
from lungsynth.commands.command import Command, Report
from lungsynth.errors import InputError, StorageError
from lungsynth.io.atomic import replacing, write_text
from lungsynth.io.running import LOCK_FILE, FolderLock, Terminated, check_place, explained, stoppable, worker_pool
from lungsynth.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def command(work, **settings) -> Command:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--out", type=Path)

    return Command("a toy", add_arguments, work, **settings)


def raising(error):
    def work(options):
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (OSError(errno.ENOSPC, "x", "a/b.nii"), 2, "a/b.nii: the disk is full. Free some space; the same command goes"),
        (RuntimeError("unable to write: No space left on device (28)"), 2, "the disk is full"),
        (PermissionError(errno.EACCES, "x", "secret"), 2, "secret: this user may not open or write it"),
        (MemoryError(), 2, "The memory does not suffice"),
        (InputError("`out` is\nodd"), 2, "--out is odd\n"),
        (KeyboardInterrupt(), 130, "Stopped. The same command goes on from here."),
        (Terminated(), 143, "Stopped."),
    ],
)
def test_a_command_ends_with_one_sentence(capsys, error, status, told):
    assert run_command(command(raising(error)), []) == status
    written = capsys.readouterr().err
    assert told in written
    assert written.count("\n") == 1


def test_a_wrapped_error_of_the_system_is_told_and_a_defect_is_not_hidden(capsys):
    wrapped = RuntimeError("a bundle failed")
    wrapped.__cause__ = OSError(errno.EROFS, "x", "/mnt/x")
    assert "can only be read" in explained(wrapped)
    with pytest.raises(ZeroDivisionError):
        run_command(command(lambda options: 1 // 0), [])


def test_what_comes_of_a_command_is_printed(capsys):
    assert run_command(command(lambda options: Report(["done"], ["but"])), []) == 0
    assert capsys.readouterr() == ("done\n", "but\n")


def test_out_is_looked_at_before_any_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run_command(command(raising(AssertionError)), ["--out", str(out)]) == 2
        assert "got a file" in (told := capsys.readouterr().err) or "is no folder" in told
    with pytest.raises(InputError, match="expected a file"):
        check_place(tmp_path, is_file=True)
    check_place(tmp_path / "new" / "deep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_sigterm_leaves_blocks_in_order():
    left, before = [], signal.getsignal(signal.SIGTERM)

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            left.append("block")

    with pytest.raises(Terminated), stoppable():
        work()
    assert left == ["block"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path, number):

    def write():
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError) as caught:
        write()
    assert explained(caught.value).startswith(str(tmp_path / "a.txt"))
    assert not list(tmp_path.iterdir())


def test_another_files_error_stays_its_own(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a.txt"):
        (tmp_path / "source").read_text(encoding="utf-8")
    assert not isinstance(caught.value, StorageError)


def test_a_folder_below_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        write_text(tmp_path / "file" / "a.txt", "x")
    assert "not a folder" in explained(caught.value) or "already" in explained(caught.value)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    folder = RunFolder(path=tmp_path / "out", identity={"seed": 1})
    with folder.held() as continued:
        assert not continued
        with pytest.raises(InputError, match="another run is writing into this folder"), folder.held():
            pass
    assert sorted(path.name for path in folder.path.iterdir()) == ["run.json"]
    with folder.held() as continued:
        assert continued


def test_runs_that_share_a_folder_keep_out_those_that_do_not(tmp_path):
    with FolderLock(tmp_path, shared=True) as first:
        assert first.alone()
        first.share()
        with FolderLock(tmp_path, shared=True) as second:
            assert not first.alone()
            assert not second.alone()
            with pytest.raises(InputError, match="another run"), FolderLock(tmp_path):
                pass
        assert first.alone()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_lock_leaves_no_empty_folder(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "new" / "deep", tmp_path / "there"):
        with pytest.raises(ZeroDivisionError), FolderLock(folder):
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_lock_of_a_killed_run_is_free(tmp_path):
    child = os.fork()
    if child == 0:
        FolderLock(tmp_path).__enter__()
        (tmp_path / "locked").touch()
        time.sleep(20)
        os._exit(0)
    while not (tmp_path / "locked").exists():
        time.sleep(0.01)
    with pytest.raises(InputError, match="another run"), FolderLock(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with FolderLock(tmp_path):
        pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_workers_end_with_a_block_that_fails():
    begun = time.monotonic()

    def work():
        with worker_pool(1) as pool:
            assert pool.submit(abs, -1).result() == 1
            pool.submit(time.sleep, 60)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert time.monotonic() - begun < 20


def test_ctrl_c_and_sigterm_end_a_process_with_its_status_and_one_sentence(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from lungsynth.cli import run_command; "
        "from lungsynth.commands.command import Command\n"
        f"def work(options):\n    Path({str(tmp_path)!r}, 'begun').touch(); time.sleep(30)\n"
        "sys.exit(run_command(Command('a toy', lambda parser: None, work), []))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (143, "Stopped. The same command goes on from here.\n")
