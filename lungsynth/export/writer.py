"""Rendering a catalogue to files: in one process, in several, or with Ray on several machines, to the same bytes.

The catalogue is cut into shards. A shard is done when `.parts/<shard>.json` stands, which is written last: it lists the
shard's files with their SHA-256 and says what the label files need. A shard that was cut off is written again, to the
same bytes.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from lungsynth.compositing.render import Rendered, Renderer
from lungsynth.config import EXPORT_ENGINES, default_bundles
from lungsynth.enhancement.stage import (
    CHANGE_BINS,
    ZONES,
    Changes,
    EnhancementStage,
    change_summary,
    check_noted_weights,
    enhancement_identity,
    open_stage,
)
from lungsynth.errors import InputError
from lungsynth.export.formats import FORMATS, ExportedSample, Format
from lungsynth.export.growth import Growth, Variant, variants
from lungsynth.export.labels import write_checksums, write_labels
from lungsynth.export.split import PARTS, catalogue_parts, provenances
from lungsynth.io.atomic import remove_temporary, write_json, write_text
from lungsynth.io.running import FolderLock, worker_pool
from lungsynth.io.stored import SHA256, file_names, integers, lists, mappings, numbers, objects, read_json, texts
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, Recipe, read_catalogue
from lungsynth.run_folder import FORMAT, RunFolder
from lungsynth.run_report import write_card
from lungsynth.tracking import open_tracker

__all__ = [
    "ENHANCED_LUNGS",
    "ExportJob",
    "ExportResult",
    "Shard",
    "ShardWriter",
    "export_catalogue",
    "write_samples",
]

ENHANCED_LUNGS = ".enhanced"  # folder of lungs that all workers share; it goes when all samples are made
_RECORDS = ".parts"
_SAMPLE = objects(
    {
        "name": texts(),
        "recipe": texts(),
        "day": integers(0),
        "shape": lists(integers(1), length=2),
        "affine": lists(numbers(), length=16),
        "categories": lists(texts()),
        "boxes": lists(lists(integers(), length=4)),
        "annotations": lists(lists(numbers(), length=4)),
        "runs": lists(lists(integers(0))),
        "image": file_names,
        "label": file_names,
    },
    {
        "enhancement": objects(
            {"verdict": texts(), "found": integers(0), "lost": integers(0), "invented": integers(0)},
        )
    },
)
_RECORD = objects(
    {
        "samples": lists(_SAMPLE),
        "left_out": integers(0),
        "changes": lists(lists(integers(0), length=CHANGE_BINS), length=len(ZONES)),
        "files": mappings(texts(SHA256)),
    }
)


class Shard(NamedTuple):
    """Recipes begin .. end of the catalogue."""

    begin: int
    end: int

    @property
    def name(self) -> str:
        """Of its files; sorted names are sorted shards."""
        return f"{self.begin:09}-{self.end:09}"

    @classmethod
    def recorded(cls, record: Path) -> "Shard":
        """The shard that a record's name says is done.

        Raises:
            InputError: when it is the name of none.
        """
        if match := re.fullmatch(r"(\d{9,18})-(\d{9,18})", record.stem):
            shard = cls(int(match[1]), int(match[2]))
            if shard.begin < shard.end and shard.name == record.stem:
                return shard
        raise InputError(f"{record}: expected the name of a record, such as 000000000-000000064.json. Remove the file.")


class ExportResult(NamedTuple):
    """What stands in the folder.

    Args:
        out: the folder.
        samples: `ExportedSample.facts` of each, with `image` and `label`, the names of its files.
        files: number of files.
        left_out: recipes of which no growth series could be made.
        enhancement: what the enhancer changed, see `change_summary`; empty without one.
    """

    out: Path
    samples: list[dict[str, Any]]
    files: int
    left_out: int
    enhancement: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to render, to what, and where; it travels to other processes and machines.

    Args:
        catalogue: `catalogue.parquet`.
        out: folder to fill.
        format: a key of `formats.FORMATS`.
        library: folder of the assets; the catalogue's own when None.
        pairs: write each slice without its nodules, too.
        growth: write the nodules as they are on several days.
        enhance: send the composites through the CycleGAN; as the catalogue notes it when None, so that what is
            rendered is what was made.
        bundles: folder of the bundles whose enhancer is applied; those of this installation when None.
        label_check: when enhancing, blend back what would lose or invent a nodule; as the catalogue notes when None.
        shard_size: recipes that are written, and noted as done, together; the format's when None.

    Raises:
        InputError: on an unknown format, or a size that the format does not allow.
    """

    catalogue: Path
    out: Path
    format: str
    library: Path | None = None
    pairs: bool = False
    growth: Growth | None = None
    enhance: bool | None = None
    bundles: Path | None = None
    label_check: bool | None = None
    shard_size: int | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"`format` must be one of {', '.join(FORMATS)}, got {self.format!r}.")
        if self.shard_size is not None and (self.shard_size < 1 or self.how.one_file):
            raise InputError(f"`shard_size` of {self.format} is {self.how.shard_size}, got {self.shard_size}.")

    @property
    def how(self) -> Format:
        """Its format."""
        return FORMATS[self.format]

    @property
    def assets(self) -> Path:
        """Folder of its assets."""
        return self.library or self.catalogue.parent

    def settled(self) -> "ExportJob":
        """The job with what the catalogue notes of the enhancement where it was not asked for; `bundles` is None then
        where nothing is enhanced.

        Raises:
            InputError: when the catalogue cannot be read, or the enhancer that it notes is not there.
        """
        if self.enhance is not None and self.label_check is not None and self.enhance == (self.bundles is not None):
            return self
        catalogue = read_catalogue(self.catalogue)
        noted = catalogue.enhancement
        enhance = noted is not None if self.enhance is None else self.enhance
        bundles = (self.bundles or default_bundles()).absolute() if enhance else None
        if bundles is not None and self.enhance is None:
            check_noted_weights(catalogue, bundles)
        label_check = (noted is None or noted.label_check) if self.label_check is None else self.label_check
        return replace(self, enhance=enhance, bundles=bundles, label_check=label_check)

    def identity(self) -> dict[str, Any]:
        """What makes its bytes: two jobs of one identity may fill one folder."""
        job = self.settled()
        return {
            "format": FORMAT,
            "catalogue": hashlib.sha256(self.catalogue.read_bytes()).hexdigest(),
            "files": self.format,
            "pairs": self.pairs,
            "growth": None if self.growth is None else asdict(self.growth) | {"days": list(self.growth.days)},
            **enhancement_identity(job.bundles, label_check=bool(job.label_check)),
        }

    def check_assets(self) -> None:
        """Looks whether the library has what the catalogue names, before anything is written.

        Raises:
            InputError: when an asset has no row or no file.
        """
        library, catalogue = AssetLibrary(self.assets), read_catalogue(self.catalogue)
        for asset_hash in catalogue.assets():
            library.shape(library[asset_hash].hash)

    def shards(self, begin: int, end: int) -> list[Shard]:
        """Recipes begin .. end, cut at multiples of the shard size."""
        size = self.shard_size or self.how.shard_size
        cuts = [begin, *range((begin // size + 1) * size, end, size), end]
        return [Shard(a, b) for a, b in pairwise(cuts)]

    def missing(self, begin: int, end: int) -> list[Shard]:
        """What is not done of recipes begin .. end, so that no recipe is made twice."""
        gaps, start = [], begin
        for shard in sorted(self.done()):
            if begin < shard.end and shard.begin < end:
                gaps.append((start, shard.begin))
                start = max(start, shard.end)
        return [shard for a, b in [*gaps, (start, end)] if a < b for shard in self.shards(a, b)]

    def done(self) -> list[Shard]:
        """The shards that are done."""
        return sorted(Shard.recorded(path) for path in (self.out / _RECORDS).glob("[0-9]*.json"))

    def record(self, shard: Shard) -> Path:
        """The file that says that a shard is done."""
        return self.out / _RECORDS / f"{shard.name}.json"


class ShardWriter:
    """Makes shards of a job; what it opened stays open from shard to shard.

    Args:
        job: what to make.
        library: the job's assets, where they are open already.
        catalogue: the job's catalogue, likewise.
        stage: the job's last stage, likewise.
    """

    def __init__(
        self,
        job: ExportJob,
        *,
        library: AssetLibrary | None = None,
        catalogue: Catalogue | None = None,
        stage: EnhancementStage | None = None,
    ) -> None:
        self.job = job.settled()
        self._library, self._catalogue, self._open_stage = library, catalogue, stage

    @cached_property
    def library(self) -> AssetLibrary:
        """The job's assets."""
        return AssetLibrary(self.job.assets) if self._library is None else self._library

    @cached_property
    def catalogue(self) -> Catalogue:
        """The job's recipes."""
        return read_catalogue(self.job.catalogue) if self._catalogue is None else self._catalogue

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(self.library)

    @cached_property
    def _parts(self) -> np.ndarray:
        return catalogue_parts(self.catalogue, self.library)

    @cached_property
    def _stage(self) -> EnhancementStage | None:
        if self.job.bundles is None or self._open_stage is not None:
            return self._open_stage
        return open_stage(
            self.job.bundles, label_check=bool(self.job.label_check), folder=self.job.out / ENHANCED_LUNGS
        )

    def write(self, shard: Shard) -> int:
        """Makes a shard unless it is done.

        Returns:
            Number of recipes in it.

        Raises:
            InputError: when an asset is missing or damaged.
        """
        if not self.job.record(shard).exists():
            self._write(shard)
        return shard.end - shard.begin

    def _write(self, shard: Shard) -> None:
        job = self.job
        samples, left_out = [], 0
        for index in range(shard.begin, shard.end):
            recipe_variants = self._variants(self.catalogue[index])
            left_out += not recipe_variants
            made = [self._render(variant) for variant in recipe_variants]
            samples += [replace(sample, part=PARTS[self._parts[index]]) for sample in made] if job.how.by_part else made
        written, files = job.how.write(samples, job.out, shard.name) if samples else ([], [])
        record = {
            "samples": [s.facts() | names._asdict() for s, names in zip(samples, written, strict=True)],
            "left_out": left_out,
            "changes": Changes.total(s.enhanced.changes for s in samples if s.enhanced).counts.tolist(),
            "files": {name: hashlib.sha256((job.out / name).read_bytes()).hexdigest() for name in files},
        }
        write_text(job.record(shard), json.dumps(record, sort_keys=True))

    def _variants(self, recipe: Recipe) -> list[Variant]:
        """The samples of a recipe: itself, where the job asks for no others."""
        if self.job.pairs or self.job.growth:
            return variants(recipe, pairs=self.job.pairs, growth=self.job.growth)
        return [Variant(name=recipe.id, recipe=recipe)]

    def _render(self, variant: Variant) -> ExportedSample:
        recipe = variant.recipe
        sample: Rendered = self._renderer.render(recipe) if variant.nodules else self._renderer.lung(recipe)
        image, enhanced = sample.image, None
        if self._stage is not None:
            image, enhanced = self._stage(sample, recipe.lung, self._renderer.background(recipe))
        return ExportedSample(
            name=variant.name,
            recipe=recipe.id,
            day=variant.day,
            image=image,
            label=sample.label,
            affine=sample.affine,
            boxes=sample.boxes,
            masks=sample.masks,
            annotations=sample.annotations,
            categories=tuple(nodule.category for nodule in recipe.nodules) if variant.nodules else (),
            enhanced=enhanced,
        )


def export_catalogue(
    job: ExportJob,
    *,
    begin: int = 0,
    end: int | None = None,
    engine: str = "local",
    workers: int = 1,
    tracking_uri: str | None = None,
) -> ExportResult:
    """Renders recipes begin .. end of a job's catalogue, or what is missing of them.

    Several ranges may fill one folder, one after the other or at once on machines that share it; label files and
    checksums cover all that is done when the last of them ends. What only the work needs goes when all is done.

    Args:
        job: what, to what, and where.
        begin: first recipe.
        end: behind the last one; all when None.
        engine: `local` or `ray`.
        workers: processes; with `ray`, actors on all its machines.
        tracking_uri: MLflow store; None tracks nothing.

    Raises:
        InputError: when an input cannot be used, or the folder holds another job.
    """
    writer = ShardWriter(job)
    job, count = writer.job, len(writer.catalogue)
    stop = count if end is None else end
    if not 0 <= begin < stop <= count:
        raise InputError(f"`range` {begin}:{stop} must lie within the {count} samples of {job.catalogue}.")
    if engine not in EXPORT_ENGINES or workers < 1:
        raise InputError(
            f"`engine` must be one of {', '.join(EXPORT_ENGINES)} with 1 or more `workers`, got {engine}, {workers}."
        )
    size = job.how.shard_size
    if job.how.one_file and (begin % size or (stop % size and stop != count)):
        raise InputError(
            f"`range` {begin}:{stop} must begin and end at multiples of {size}, or at the catalogue's end."
        )
    job.how.check()
    tracker = open_tracker(tracking_uri)
    job.check_assets()
    folder = RunFolder(path=job.out, identity=job.identity(), file="export.json")
    folder.check()
    with FolderLock(job.out, shared=True) as lock:
        if lock.alone():
            folder.claim()
            remove_temporary(job.out, recursive=True)
        elif not folder.check():  # what other ranges write at this moment is left alone
            folder.claim()
        lock.share()
        missing = job.missing(begin, stop)
        with tracker.run(f"export {job.out.name}", tags={"command": "export"}) as run:
            run.log_params({**job.identity(), "range": f"{begin}:{stop}", "engine": engine, "workers": workers})
            started = time.monotonic()
            _follow(job, missing, _ENGINES[engine](job, missing, workers), total=stop - begin)
            result = _finish(writer, count, tidy=lock.alone())
            written, seconds = sum(shard.end - shard.begin for shard in missing), time.monotonic() - started
            run.log_metrics({"samples_written": written, "samples_per_second": written / seconds, "seconds": seconds})
            run.log_file(job.out / "README.md")
    return result


def write_samples(job: ExportJob, writer: ShardWriter, count: int, *, workers: int = 1) -> ExportResult:
    """Renders what is missing of a whole catalogue of `count` recipes, into a folder that a run has claimed already.

    Args:
        job: what, to what, and where.
        writer: of the job; with one worker, it does the work.
        count: recipes of the catalogue.
        workers: processes.
    """
    missing = job.missing(0, count)
    finished = map(writer.write, missing) if workers == 1 else _local(job, missing, workers)
    _follow(job, missing, finished, total=count)
    return _finish(writer, count)


def _follow(job: ExportJob, missing: Sequence[Shard], finished: Iterable[int], *, total: int) -> None:
    """Waits for the shards, which come as numbers of recipes, and shows progress."""
    done = total - sum(shard.end - shard.begin for shard in missing)
    with tqdm(total=total, initial=done, desc=job.format, unit="sample") as progress:
        for recipes in finished:
            progress.update(recipes)


def _local(job: ExportJob, shards: Sequence[Shard], workers: int) -> Iterator[int]:
    if workers == 1:
        writer = ShardWriter(job)
        yield from (writer.write(shard) for shard in shards)
        return
    with worker_pool(min(workers, max(1, len(shards))), _start, (job, workers)) as pool:
        try:
            for future in as_completed([pool.submit(_write, shard) for shard in shards]):
                yield future.result()
        except BrokenProcessPool as error:
            raise InputError("A worker was killed, perhaps for want of memory. The same command goes on.") from error


_writers: list[ShardWriter] = []


def _start(job: ExportJob, workers: int) -> None:
    if job.bundles is not None:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))  # or the processes wait for one another
    _writers[:] = [ShardWriter(job)]


def _write(shard: Shard) -> int:
    return _writers[0].write(shard)


def _ray(job: ExportJob, shards: Sequence[Shard], workers: int) -> Iterator[int]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError("The engine ray needs Ray Data. Install it with: pip install 'lungsynth[ray]'") from error
    if not shards:
        return
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([shard._asdict() for shard in shards], override_num_blocks=len(shards))
    writer: Any = _RayWriter  # an actor's class, which Ray's annotations do not foresee
    finished = rows.map(writer, fn_constructor_args=(job,), concurrency=workers)
    yield from (int(row["recipes"]) for row in finished.iter_rows())


class _RayWriter:
    """An actor that writes shards."""

    def __init__(self, job: ExportJob) -> None:
        self._writer = ShardWriter(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"recipes": self._writer.write(Shard(int(row["begin"]), int(row["end"])))}


_ENGINES = {"local": _local, "ray": _ray}


def _finish(writer: ShardWriter, count: int, *, tidy: bool = True) -> ExportResult:
    """Writes label files and checksums of all that is done; tidies up when that is all."""
    job = writer.job
    records = [_read_record(job.record(shard)) for shard in job.done()]
    samples = {sample["name"]: sample for record in records for sample in record["samples"]}
    files = {name: digest for record in records for name, digest in record["files"].items()}
    made_of = provenances(writer.catalogue, writer.library, [sample["recipe"] for sample in samples.values()])
    write_labels(list(samples.values()), made_of, job.out)
    job.how.write_lists(list(samples.values()), made_of, job.out)
    write_checksums(files, job.out)
    enhancement = _write_summary(records, job.out) if job.bundles is not None else {}
    real = bool(np.any(read_catalogue(job.catalogue).table["has_real_voxels"].to_numpy()))
    write_card(job.out, samples=len(samples), real_voxels=real)
    if tidy and not job.missing(0, count):  # else another range may be at work, or be still to come
        remove_temporary(job.out, recursive=True)
        shutil.rmtree(job.out / ENHANCED_LUNGS, ignore_errors=True)
    left_out = sum(record["left_out"] for record in records)
    return ExportResult(job.out, list(samples.values()), len(files), left_out, enhancement)


def _read_record(path: Path) -> dict[str, Any]:
    remedy = "Remove the file, and the same command renders its samples again."
    record: dict[str, Any] = read_json(path, _RECORD, what="the record of rendered samples", remedy=remedy)
    if lost := next((name for name in record["files"] if not (path.parents[1] / name).is_file()), None):
        raise InputError(f"{path}: names the file {lost}, which is not there any more. {remedy}")
    return record


def _write_summary(records: Sequence[dict[str, Any]], out: Path) -> dict[str, float | None]:
    changes = Changes.total(Changes(np.array(record["changes"])) for record in records)
    summary = change_summary([sample["enhancement"] for record in records for sample in record["samples"]], changes)
    write_json(out / "enhanced.json", summary, indent=2)
    return summary
