"""A job and its parts.

A part is done when `.parts/<part>.json` stands, which is written last: it lists the part's files with their SHA-256 and
says what the label files need. A part that was cut off is written again, to the same bytes.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from lungsynth.compositing.render import Renderer
from lungsynth.ct.write import write_atomically
from lungsynth.enhancement.changes import Changes
from lungsynth.enhancement.identity import enhancement_identity
from lungsynth.enhancement.stage import EnhancementStage, open_stage
from lungsynth.errors import InputError
from lungsynth.export.formats import FORMATS, Format
from lungsynth.export.sample import export_variant
from lungsynth.placement.assets import AssetLibrary
from lungsynth.placement.catalogue import Catalogue, read_catalogue
from lungsynth.placement.growth import Growth, variants

__all__ = ["ENHANCED_LUNGS", "ExportJob", "Shard", "ShardWriter"]

ENHANCED_LUNGS = ".enhanced"  # folder of lungs that all workers share; it goes when all samples are made


class Shard(NamedTuple):
    """Recipes begin .. end of the catalogue."""

    begin: int
    end: int

    @property
    def name(self) -> str:
        """Of its files; sorted names are sorted parts."""
        return f"{self.begin:09}-{self.end:09}"

    @classmethod
    def named(cls, name: str) -> "Shard":
        """The part of a `name`."""
        return cls(*map(int, name.split("-")))


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to render, to what, and where; it travels to other processes and machines.

    Args:
        catalogue: `catalogue.parquet`.
        out: folder to fill.
        format: a key of `formats.FORMATS`.
        library: folder of the assets; the catalogue's own when None.
        pairs: see `placement.growth`.
        growth: see `placement.growth`.
        bundles: folder of the bundles whose enhancer is applied; None leaves the composites as they are.
        gate: with `bundles`, blend back what would cost or invent a nodule.

    Raises:
        InputError: on an unknown format.
    """

    catalogue: Path
    out: Path
    format: str
    library: Path | None = None
    pairs: bool = False
    growth: Growth | None = None
    bundles: Path | None = None
    gate: bool = True

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"--format must be one of {', '.join(FORMATS)}, got {self.format!r}.")

    @property
    def how(self) -> Format:
        """Its format."""
        return FORMATS[self.format]

    @property
    def assets(self) -> Path:
        """Folder of its assets."""
        return self.library or self.catalogue.parent

    def identity(self) -> dict[str, Any]:
        """What makes its bytes: two jobs of one identity may fill one folder."""
        return {
            "format": 1,
            "catalogue": hashlib.sha256(self.catalogue.read_bytes()).hexdigest(),
            "files": self.format,
            "pairs": self.pairs,
            "growth": None if self.growth is None else asdict(self.growth) | {"days": list(self.growth.days)},
            **enhancement_identity(self.bundles, gate=self.gate),
        }

    def parts(self, begin: int, end: int) -> list[Shard]:
        """The parts of recipes begin .. end, cut at multiples of the format's part size."""
        size = self.how.part_size
        cuts = [begin, *range((begin // size + 1) * size, end, size), end]
        return [Shard(a, b) for a, b in pairwise(cuts)]

    def record(self, part: Shard) -> Path:
        """The file that says that a part is done."""
        return self.out / ".parts" / f"{part.name}.json"


@dataclass(frozen=True)
class ShardWriter:
    """Makes parts of a job; what it opened stays open from part to part."""

    job: ExportJob

    @cached_property
    def _renderer(self) -> Renderer:
        return Renderer(AssetLibrary(self.job.assets))

    @cached_property
    def _recipes(self) -> Catalogue:
        return read_catalogue(self.job.catalogue)

    @cached_property
    def _stage(self) -> EnhancementStage | None:
        if self.job.bundles is None:
            return None
        return open_stage(self.job.bundles, gate=self.job.gate, folder=self.job.out / ENHANCED_LUNGS)

    def write(self, part: Shard) -> int:
        """Makes a part unless it is done.

        Returns:
            Number of recipes in it.

        Raises:
            InputError: when an asset is missing or damaged.
        """
        if not self.job.record(part).exists():
            self._write(part)
        return part.end - part.begin

    def _write(self, part: Shard) -> None:
        job = self.job
        samples, left_out = [], 0
        for index in range(part.begin, part.end):
            found = variants(self._recipes[index], pairs=job.pairs, growth=job.growth)
            left_out += not found
            samples += [export_variant(variant, self._renderer, self._stage) for variant in found]
        written, files = job.how.write(samples, job.out, part.name) if samples else ([], [])
        record = {
            "samples": [s.facts() | names._asdict() for s, names in zip(samples, written, strict=True)],
            "left_out": left_out,
            "changes": Changes.total(s.outcome.changes for s in samples if s.outcome).counts.tolist(),
            "files": {name: hashlib.sha256((job.out / name).read_bytes()).hexdigest() for name in files},
        }
        write_atomically(job.record(part), json.dumps(record, sort_keys=True).encode())
