"""All parts of a job, one after the other, in several processes, or with Ray on several machines: the same bytes."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lungsynth.ct.write import write_atomically
from lungsynth.enhancement.changes import Changes, change_summary
from lungsynth.errors import InputError
from lungsynth.export.labels import write_checksums, write_labels
from lungsynth.export.shards import ENHANCED_LUNGS, ExportJob, Shard, ShardWriter
from lungsynth.placement.catalogue import read_catalogue

__all__ = ["Totals", "export_catalogue"]

_ENGINE_NAMES = ("local", "ray")


class Totals(NamedTuple):
    """Of all that stands in the folder: samples, files, and recipes of which no growth series could be made."""

    samples: int
    files: int
    left_out: int


def export_catalogue(
    job: ExportJob, *, begin: int = 0, end: int | None = None, engine: str = "local", workers: int = 1
) -> Totals:
    """Renders recipes begin .. end of a job's catalogue, or what is missing of them.

    Several ranges may fill one folder, one after the other or at once on machines that share it; label files and
    checksums cover all that is done when the last of them ends. What only the work needs goes when all is done.

    Args:
        job: what, to what, and where.
        begin: first recipe.
        end: behind the last one; all when None.
        engine: `local` or `ray`.
        workers: processes; with `ray`, actors on all its machines.

    Raises:
        InputError: when an input cannot be used, or the folder holds another job.
    """
    count = len(read_catalogue(job.catalogue))
    stop = count if end is None else end
    if not 0 <= begin < stop <= count:
        raise InputError(f"--range {begin}:{stop} must lie within the {count} samples of {job.catalogue}.")
    if engine not in _ENGINE_NAMES or workers < 1:
        raise InputError(f"--engine must be one of {_ENGINE_NAMES} with 1 or more workers, got {engine}, {workers}.")
    size = job.how.part_size
    if job.how.shards and (begin % size or (stop % size and stop != count)):
        raise InputError(
            f"--range {begin}:{stop} must begin and end at multiples of {size}, or at the catalogue's end."
        )
    job.how.check()
    _claim(job)
    parts = job.parts(begin, stop)
    missing = [part for part in parts if not job.record(part).exists()]
    done = stop - begin - sum(part.end - part.begin for part in missing)
    with tqdm(total=stop - begin, initial=done, desc=job.format, unit="sample") as progress:
        for finished in _ENGINES[engine](job, missing, workers):
            progress.update(finished)
    return _finish(job)


def _claim(job: ExportJob) -> None:
    path, wanted = job.out / "export.json", job.identity()
    if path.exists():
        found = json.loads(path.read_text())
        if different := sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key)):
            raise InputError(
                f"{path}: another export, it differs in {', '.join(different)}. Repeat its settings to go on with it, "
                "or give another --out."
            )
    elif job.out.exists() and any(not entry.name.startswith(".") for entry in job.out.iterdir()):
        raise InputError(f"{job.out}: the folder holds other files. Give a new or empty folder to --out.")
    write_atomically(path, (json.dumps(wanted, indent=2, sort_keys=True) + "\n").encode())


def _local(job: ExportJob, parts: Sequence[Shard], workers: int) -> Iterator[int]:
    if workers == 1:
        writer = ShardWriter(job)
        yield from (writer.write(part) for part in parts)
        return
    # Spawned, because a forked process may inherit the locks of PyTorch's threads.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(job, workers)
    ) as pool:
        try:
            for future in as_completed([pool.submit(_write, part) for part in parts]):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError("A worker was killed, perhaps for want of memory. The same command goes on.") from error


_writers: list[ShardWriter] = []


def _start(job: ExportJob, workers: int) -> None:
    if job.bundles is not None:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))  # or the processes wait for one another
    _writers[:] = [ShardWriter(job)]


def _write(part: Shard) -> int:
    return _writers[0].write(part)


def _ray(job: ExportJob, parts: Sequence[Shard], workers: int) -> Iterator[int]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("--engine ray needs Ray Data. Install it with: pip install 'lungsynth[ray]'") from error
    if not parts:
        return
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([part._asdict() for part in parts], override_num_blocks=len(parts))
    writer: Any = _RayWriter  # an actor's class, which Ray's annotations do not foresee
    finished = rows.map(writer, fn_constructor_args=(job,), concurrency=workers)
    yield from (int(row["recipes"]) for row in finished.iter_rows())


class _RayWriter:
    """An actor that writes parts."""

    def __init__(self, job: ExportJob) -> None:
        self._writer = ShardWriter(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"recipes": self._writer.write(Shard(int(row["begin"]), int(row["end"])))}


_ENGINES = {"local": _local, "ray": _ray}


def _finish(job: ExportJob) -> Totals:
    paths = sorted((job.out / ".parts").glob("[0-9]*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    samples = {sample["name"]: sample for record in records for sample in record["samples"]}
    files = {name: digest for record in records for name, digest in record["files"].items()}
    write_labels(list(samples.values()), job.out)
    write_checksums(files, job.out)
    if job.bundles is not None:
        _write_summary(records, job.out)
    done = np.zeros(len(read_catalogue(job.catalogue)), dtype=bool)
    for part in (Shard.named(path.stem) for path in paths):
        done[part.begin : part.end] = True
    if done.all():  # else another range may be at work
        _remove_leftovers(job.out)
    return Totals(len(samples), len(files), sum(record["left_out"] for record in records))


def _write_summary(records: Sequence[dict[str, Any]], out: Path) -> None:
    changes = Changes.total(Changes(np.array(record["changes"])) for record in records)
    facts = [sample["enhancement"] for record in records for sample in record["samples"]]
    content = json.dumps(change_summary(facts, changes), indent=2) + "\n"
    write_atomically(out / "enhanced.json", content.encode())


def _remove_leftovers(out: Path) -> None:
    """Removes what only the work needed, and what stopped runs left of it."""
    for pattern in ("**/.*.tmp", "**/.*.part"):
        for path in out.glob(pattern):
            if path.is_file():
                path.unlink(missing_ok=True)
    shutil.rmtree(out / ENHANCED_LUNGS, ignore_errors=True)
