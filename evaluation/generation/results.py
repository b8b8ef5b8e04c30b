"""Runs the lines of Table II: samples of each, and their figures, kept in `OUT/.parts` for going on after a stop."""

import dataclasses
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.generation.figures import GeneratorFigures, measure_generator
from evaluation.generation.methods import GeneratedSamples, GenerationMethod, Requests
from evaluation.generation.reference import Reference, balanced_requests, matched_requests
from evaluation.generation.reference_distances import Group
from evaluation.metrics.bootstrap import Estimate
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_bytes
from lungsynth.similarity.samples import Samples

__all__ = ["GenerationResult", "run_generator"]

_logger = logging.getLogger(__name__)
_SETS = ("matched", "balanced")
_VERSION = 2  # to be raised when a figure is measured in another way, so that kept ones are not taken


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationResult:
    """A line of the table, measured."""

    generator: GenerationMethod
    matched: GeneratedSamples
    balanced: GeneratedSamples
    figures: GeneratorFigures


def run_generator(
    generator: GenerationMethod, reference: Reference, *, count: int, identity: str, folder: Path
) -> GenerationResult:
    """Draws the samples of a generator and measures them, or takes from `folder` what is kept already.

    Args:
        generator: the line.
        reference: the real side.
        count: samples a category of the balanced set.
        identity: of the real side and the settings.
        folder: `NAME.npz` (samples) and `NAME.json` (figures).

    Raises:
        InputError: naming the method, when it fails.
    """
    known = hashlib.sha256(f"{_VERSION}:{identity}:{generator.identity}:{count}".encode()).hexdigest()
    requests = (matched_requests(reference), balanced_requests(reference, count=count))
    try:
        sets = _load_samples(folder / f"{generator.name}.npz", known) or _draw(generator, requests, folder, known)
        matched, balanced = sets
        figures = _load_figures(folder / f"{generator.name}.json", known)
        if figures is None:
            figures = measure_generator(matched, balanced, reference)
            content = {"identity": known, "figures": dataclasses.asdict(figures)}
            write_bytes(folder / f"{generator.name}.json", json.dumps(content).encode())
    except Exception as error:  # one method that fails, for whatever reason, must not take the others with it
        raise InputError(f"{generator.name}: failed ({type(error).__name__}: {error})") from error
    return GenerationResult(generator=generator, matched=matched, balanced=balanced, figures=figures)


def _draw(
    generator: GenerationMethod, requests: tuple[Requests, Requests], folder: Path, known: str
) -> tuple[GeneratedSamples, GeneratedSamples]:
    answer = generator.open()
    sets = answer(requests[0]), answer(requests[1])
    arrays: dict[str, Any] = {"identity": known, "spacing_mm": sets[0].samples.spacing_mm}
    for name, drawn in zip(_SETS, sets, strict=True):
        samples = drawn.samples
        arrays |= {f"{name}_hu": samples.hu, f"{name}_mask": samples.mask}
        arrays |= {f"{name}_{key}": np.array(getattr(samples, key)) for key in ("categories", "owners", "names")}
        if drawn.asked_mm is not None:
            arrays[f"{name}_asked_mm"] = drawn.asked_mm
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(folder / f"{generator.name}.npz", buffer.getvalue())
    return sets


def _load_samples(path: Path, known: str) -> tuple[GeneratedSamples, GeneratedSamples] | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["identity"]) != known:
                return None
            matched, balanced = (_drawn(arrays, name) for name in _SETS)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, EOFError):
        return None
    _logger.info("taken from %s", path)
    return matched, balanced


def _drawn(arrays: Mapping[str, np.ndarray], name: str) -> GeneratedSamples:
    texts = {key: tuple(arrays[f"{name}_{key}"].tolist()) for key in ("categories", "owners", "names")}
    samples = Samples(
        hu=arrays[f"{name}_hu"], mask=arrays[f"{name}_mask"], spacing_mm=float(arrays["spacing_mm"]), **texts
    )
    return GeneratedSamples(samples=samples, asked_mm=arrays.get(f"{name}_asked_mm"))


def _load_figures(path: Path, known: str) -> GeneratorFigures | None:
    try:
        stored = json.loads(path.read_text())
        if stored["identity"] != known:
            return None
        figures = stored["figures"]
        return GeneratorFigures(
            headline=_group(figures["headline"]),
            copies=figures["copies"],
            fid_by_n={int(n): value for n, value in figures["fid_by_n"].items()},
            checks=_group(figures["checks"]),
            by_category={name: _group(group) for name, group in figures["by_category"].items()},
            by_size={name: _group(group) for name, group in figures["by_size"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _group(stored: Mapping[str, Any]) -> Group:
    return {name: Estimate(**figure) for name, figure in stored.items()}
