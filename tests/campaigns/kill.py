"""Kill: commands ended by SIGKILL at random moments and continued, until they make what an undisturbed run makes.

`make kill`, or `python tests/campaigns/kill.py [--kills 50] [--seed 0] [--only export]`. Each of the commands is run
undisturbed first. Then it is run again into another folder, killed some time between its start and its usual end,
continued, killed again, and so on; at last it may end. The two folders must hold the same files with the same bytes, no
temporary file, and no process may be left. Moments are drawn from the seed, within the time that the undisturbed run
took; what a moment meets depends on the machine.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "campaigns")]
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fake_bundles import write_fake_bundles
from sandbox import leftovers

FORMATS = ("nifti", "nnunet", "msd", "luna16", "dicom", "png", "webdataset", "zarr")
BUNDLES = ("lung_seg", "wcapsgan", "cyclegan")
_SECONDS = 300.0  # that a command may take
_TIMES = {"run_seconds"}  # of sidecars; they are no part of the bytes that a run promises
# What a training notes of time and place, and the checkpoints, which hold its clock.
_UNCOMPARED = ("*/model*.json", "*/resume_*.pt", "*/.parts/mlflow_run")


@dataclass(frozen=True)
class Job:
    """A command that can be continued.

    Args:
        name: of it.
        run: writes into a folder, or goes on in it, and returns an exit status.
    """

    name: str
    run: Callable[[Path], int]


def command(*arguments: str) -> Callable[[Path], int]:
    """Runs `lungsynth` with these arguments, `{}` being the folder."""

    def run(out: Path) -> int:
        from lungsynth.cli import main

        return main([argument.replace("{}", str(out)) for argument in arguments])

    return run


def training(name: str, cohort: Path, **settings: object) -> Callable[[Path], int]:
    """Trains a bundle, from its last checkpoint where there is one."""

    def run(out: Path) -> int:
        from trainings import open_training

        root = ROOT / "bundles" / f"{name}_bundle"
        sys.path.insert(0, str(root))
        saved = sorted(out.glob("resume_*.pt"), key=lambda path: int(path.stem.removeprefix("resume_")))
        workflow = open_training(root, cohort, out, resume_from=str(saved[-1]) if saved else None, **settings)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return 0

    return run


def make_jobs(folder: Path, *, trainings: bool = True) -> list[Job]:
    """The commands, on small inputs that are made here.

    Args:
        folder: of the inputs.
        trainings: of each bundle, too: they need a cohort of more patients.
    """
    from lungsynth.cli import main
    from lungsynth.cohort.phantom.files import make_phantom_cohort

    patients = 6 if trainings else 2
    make_phantom_cohort(folder / "source", patients=patients, seed=3, size_px=96, slices=16, slice_spacing_mm=12.0)
    bundles = write_fake_bundles(folder / "bundles", "killed")
    common = ("--bundles", str(bundles))
    plan = ("--lungs", "3", "--groups", "20", "--keep", "16", "--nodules", "6")
    catalogue = str(folder / "plan" / "catalogue.parquet")
    if main(["plan", "--out", catalogue, *plan, *common]):
        raise SystemExit("the sound plan failed")
    jobs = [
        Job("prepare", command("prepare", str(folder / "source"), "--out", "{}/cohort", "--workers", "2")),
        Job("plan", command("plan", "--out", "{}/catalogue.parquet", *plan, *common)),
        Job("generate", command("generate", "--out", "{}/out", "--count", "12", *common, "--tracking-uri", "none")),
        *(Job(f"export {name}", command("export", catalogue, "--out", "{}/out", "--format", name)) for name in FORMATS),
    ]
    return jobs + (_trainings(folder) if trainings else [])


def _trainings(folder: Path) -> list[Job]:
    """A training of each bundle, at tiny sizes."""
    from lungsynth.cli import main

    cohort, composites = folder / "cohort", folder / "composites"
    own = ["--out", str(composites), "--count", "8", "--no-enhance", "--tracking-uri", "none"]
    if main(["prepare", str(folder / "source"), "--out", str(cohort), "--workers", "1"]) or main(
        ["generate", *own, "--bundles", str(folder / "bundles")]
    ):
        raise SystemExit("the inputs of the trainings could not be made")
    steps = {"max_epochs": 3, "epoch_length": 2, "batch_size": 2}
    settings: dict[str, dict[str, object]] = {
        "lung_seg": {**steps, "validate#dataset#data#limit": 2},
        # Nobody has told the textures of the patient who validates.
        "wcapsgan": {**steps, "val_interval": 1, "val_split": "training"},
        "cyclegan": {**steps, "composite_dir": str(composites), "crop_px": 64},
    }
    return [Job(f"train {name}", training(name, cohort, **settings[name])) for name in BUNDLES]


def run_killed(job: Job, out: Path, after: float | None) -> bool:
    """Runs a job in a child and kills it after some seconds.

    Returns:
        Whether it was killed; else it has ended well.

    Raises:
        SystemExit: when it ended badly, or not at all.
    """
    out.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _work(job, out)
    deadline = time.monotonic() + (_SECONDS if after is None else after)
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if code := os.waitstatus_to_exitcode(status):
                raise SystemExit(
                    f"{job.name}: status {code}\n{out.with_suffix('.txt').read_text(encoding='utf-8')[-2000:]}"
                )
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if after is None:
        raise SystemExit(f"{job.name}: still at work after {_SECONDS:.0f} s")
    return True


def _work(job: Job, out: Path) -> None:
    """The child: never returns."""
    status = 70
    try:
        os.setpgid(0, 0)
        log = os.open(out.with_suffix(".txt"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = job.run(out)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file whose bytes a run promises."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = [(path, f"{folder.name}/{path.relative_to(folder)}") for path in paths]
    compared = [(path, name) for path, name in named if not any(Path(name).match(p) for p in _UNCOMPARED)]
    return {name.partition("/")[2]: hashlib.sha256(path.read_bytes()).hexdigest() for path, name in compared}


def orphans(marker: Path) -> list[int]:
    """Processes that still have a file below a folder open, or work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes()
            alive = (process / "stat").read_text(encoding="utf-8").split(")")[-1].split()[0] != "Z"
        except OSError:
            continue
        if alive and f"LUNGSYNTH_KILL={marker}".encode() in words and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def disturb(job: Job, folder: Path, kills: int, chance: random.Random) -> tuple[int, list[str]]:
    """Runs a job undisturbed and killed, and compares.

    Returns:
        How often it was killed, and what was wrong.
    """
    whole, killed = folder / "whole", folder / "killed"
    started = time.monotonic()
    run_killed(job, whole, None)
    seconds, times = time.monotonic() - started, 0
    while times < kills:
        if run_killed(job, killed, chance.uniform(0.05, 0.95) * seconds):
            times += 1
        else:
            shutil.rmtree(killed)  # it got through: the next one is a new run
    run_killed(job, killed, None)
    faults = []
    first, second = digests(whole), digests(killed)
    for name in sorted({*first, *second}):
        if first.get(name) != second.get(name):
            why = "is missing" if name not in second else "is left over" if name not in first else "differs"
            faults.append(f"{name} {why}")
    faults += [f"left behind: {name}" for name in leftovers(killed)]
    deadline = time.monotonic() + 10
    while (left := orphans(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    faults += [f"process {number} is left" for number in left]
    return times, faults


def campaign(kills: int, seed: int, *, only: str = "", trainings: bool = True) -> list[str]:
    """Disturbs all jobs in turn, prints the counts, and returns what was wrong."""
    chance, faults, total = random.Random(seed), [], 0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lungsynth-kill-") as name:
        folder = Path(name)
        os.environ["LUNGSYNTH_KILL"] = str(folder)
        jobs = [job for job in make_jobs(folder / "inputs", trainings=trainings) if only in job.name]
        for number, job in enumerate(jobs):
            share = kills // len(jobs) + (number < kills % len(jobs))
            own = folder / job.name.replace(" ", "_")
            times, wrong = disturb(job, own, share, chance)
            total += times
            verdict = "; ".join(wrong[:5]) or "the same bytes, nothing left"
            print(f"{job.name:18} killed {times} times: {verdict}", flush=True)
            faults += [f"{job.name}: {fault}" for fault in wrong]
            shutil.rmtree(own)
    print(f"{total} kills, {len(faults)} faults, {time.monotonic() - begun:.0f} s")
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="in all (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--only", default="", help="jobs whose names hold this text")
    options = parser.parse_args(arguments)
    return 1 if campaign(options.kills, options.seed, only=options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
