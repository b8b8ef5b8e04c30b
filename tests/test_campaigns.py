"""A short fuzz and a short kill, of what `make fuzz` and `make kill` do at length."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent / "campaigns"))

import random

import fuzz
import kill
from sandbox import Ending, faults_of, run_case


def test_a_sandbox_notices_what_must_not_happen(tmp_path):
    def work(status=0, told="", out=None, outside=None):
        def command():
            sys.stderr.write(told)
            for folder, name in ((out, "a.txt"), (outside, "b.txt")):
                if folder:
                    folder.mkdir(exist_ok=True)
                    (folder / name).write_text("x", encoding="utf-8")
            return status

        return command

    outside = tmp_path / "outside"
    outside.mkdir()
    case = tmp_path / "case"
    case.mkdir()
    assert run_case(work(), case, outside=outside).faults == []
    assert run_case(work(2, "a.json: is odd. Copy it again.\n", out=case / "out"), case, outside=outside).faults == []
    assert run_case(work(2, "one\ntwo\n"), case).faults == ["2 sentences in place of one"]
    assert run_case(work(0, outside=outside), case, outside=outside).faults == ["changed outside of OUT: b.txt"]
    assert "words of Python: ValueError" in run_case(work(2, "could not (ValueError: x)\n"), case).faults
    assert "status 1" in run_case(lambda: sys.exit("out"), case).faults
    assert "still at work" in run_case(lambda: [None for _ in iter(int, 1)], case, seconds=0.2).faults[0]
    assert faults_of(Ending(status=0, seconds=1, megabytes=5000, told="")) == ["5000 MB of memory"]


def test_a_few_malformed_inputs_end_in_a_sentence():
    assert fuzz.campaign(range(4), seed=1, only="export") == []


def test_a_killed_export_makes_the_same_bytes(tmp_path):
    job = next(job for job in kill.make_jobs(tmp_path / "inputs", trainings=False) if job.name == "export zarr")
    times, faults = kill.disturb(job, tmp_path / "zarr", 1, random.Random(0))
    assert (times, faults) == (1, [])
