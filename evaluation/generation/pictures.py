"""Pictures of Tables II and III: each method at the same seeds, real and generated mixed, copies, and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import repeat
from PIL import Image

from evaluation.generation.ct_checks import CtCheck, measure_checks
from evaluation.generation.figures import GenerationFigures
from evaluation.generation.methods import GeneratedSamples
from evaluation.generation.reference import GenerationReference
from evaluation.methods import Method
from evaluation.mixed import write_mixed
from evaluation.plots import plot_file
from lungsynth.cohort.montage import Tile, spread, tile_block
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.io.atomic import write_picture
from lungsynth.similarity.copies import find_copies
from lungsynth.similarity.samples import SampleKind, Samples, as_shown

__all__ = ["MeasuredGenerator", "write_pictures"]

_NODULE_PX, _LUNG_PX = 112, 192  # side of a tile
_MARGIN_PX = 12  # cut off each side of a nodule's patch in close-ups: the middle 28 mm are left
_COLUMNS: Mapping[SampleKind, int] = {"nodules": 16, "lungs": 8, "slices": 8}
_MIXED = 32  # samples of each side
_NEAREST = 8  # samples
_CHECK_COLUMNS = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredGenerator:
    """A row of the table: a method, its samples and their figures."""

    method: Method
    matched: GeneratedSamples
    balanced: GeneratedSamples
    figures: GenerationFigures


def write_pictures(
    rows: Sequence[MeasuredGenerator], shown: MeasuredGenerator, reference: GenerationReference, out: Path
) -> tuple[Path, ...]:
    """Writes all pictures.

    Args:
        rows: of the table.
        shown: whose samples the pictures of one method show.
        reference: the real side.
        out: folder.
    """
    write_picture(out / "montage.png", _method_montage(rows, reference))
    _write_mixed(shown, reference, out)
    write_picture(out / "nearest.png", _nearest_montage(shown, reference))
    _plot_fid_by_n(rows, out / "fid_by_n.png")
    checks = {row.method.title: measure_checks(row.matched.samples, reference.kind) for row in rows}
    _plot_distributions(reference.checks, checks, out / "distributions.png")
    names = ("montage.png", "mixed.png", "mixed_key.md", "nearest.png", "fid_by_n.png", "distributions.png")
    return tuple(out / name for name in names)


def _method_montage(rows: Sequence[MeasuredGenerator], reference: GenerationReference) -> Image.Image:
    """A row for each category of each method, all at the same seeds, below as many held-out samples."""
    columns, blocks = _COLUMNS[reference.kind], []
    sets = {f"held-out {reference.kind}": reference.held_out}
    sets |= {row.method.title: row.balanced.samples for row in rows}
    for title, samples in sets.items():
        for category in sorted(set(samples.categories)):
            places = samples.of(category).tolist()
            shown = spread(places, columns) if samples is reference.held_out else places[:columns]
            tiles = [_tile(samples, i) for i in shown]
            tiles += [np.zeros_like(tiles[0])] * (columns - len(tiles))
            blocks.append(tile_block(f"{title}: {category}", tiles, columns=columns))
    return Image.fromarray(np.concatenate(blocks))


def _write_mixed(row: MeasuredGenerator, reference: GenerationReference, folder: Path) -> None:
    """`mixed.png`: 32 real and 32 generated samples in seeded order; `mixed_key.md`: which is which.

    The generated ones were requested with the categories and diameters of other held-out ones than those shown.
    """
    rng = np.random.default_rng(reference.seed)
    order, half = rng.permutation(len(reference.held_out)).tolist(), min(_MIXED, len(reference.held_out) // 2)
    generated = as_shown(row.matched.samples, reference.kind)
    sides = [
        ("real", reference.shown, reference.held_out.categories, order[:half]),
        ("generated", generated, generated.categories, order[half : 2 * half]),
    ]
    tiles = [
        (_tile(samples, i, close_up=True), f"{side} {categories[i]}")
        for side, samples, categories, places in sides
        for i in places
    ]
    write_mixed(tiles, folder, what=f"held-out {reference.kind} and {row.method.title}", rng=rng)


def _nearest_montage(row: MeasuredGenerator, reference: GenerationReference) -> Image.Image:
    """The generated samples that are nearest to a training sample for their size, above it."""
    samples = as_shown(row.matched.samples, reference.kind)
    nearest = find_copies(samples, reference.training_shown, flips=reference.flips)
    ratio = nearest.distances / reference.threshold.at(samples.diameter_mm)
    first = np.argsort(ratio, kind="stable")[:_NEAREST].tolist()
    numbers = ", ".join(f"{ratio[i]:.2f}" for i in first)
    mirrored = " (maybe mirrored)" if reference.flips else ""
    blocks = {
        f"{row.method.title}: distance / threshold {numbers}": [_tile(samples, i, close_up=True) for i in first],
        f"nearest training samples{mirrored}": [
            _tile(reference.training_shown, int(nearest.indices[i]), close_up=True) for i in first
        ],
    }
    return Image.fromarray(
        np.concatenate([tile_block(head, tiles, columns=len(tiles)) for head, tiles in blocks.items()])
    )


def _plot_fid_by_n(rows: Sequence[MeasuredGenerator], path: Path) -> None:
    with plot_file(path) as (axes,):
        for index, row in enumerate(rows):
            points = sorted(row.figures.fid_by_n.items())
            axes.plot(*zip(*points, strict=True), "o-", label=row.method.title, color=f"C{index % 10}")
        axes.set(title="FID falls with n by its bias alone", xlabel="n of each side", ylabel="FID", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _plot_distributions(
    real: Mapping[str, CtCheck], generated: Mapping[str, Mapping[str, CtCheck]], path: Path
) -> None:
    """The cumulative distribution of each check, held-out samples in black; the power spectrum as its median.

    Args:
        real: checks of the held-out samples.
        generated: checks by method.
        path: of the PNG.
    """
    rows = -(-len(real) // _CHECK_COLUMNS)
    with plot_file(path, rows=rows, columns=_CHECK_COLUMNS, panel_inches=(4, 3)) as panels:
        for axes, (name, check) in zip(panels, real.items(), strict=False):
            sides = [("held-out", check, "k", 2.0)]
            sides += [(title, own[name], f"C{i % 10}", 1.0) for i, (title, own) in enumerate(generated.items())]
            for title, side, colour, width in sides:
                axes.plot(*_distribution(side), label=title, color=colour, linewidth=width)
            axes.set_title(f"{name} [{check.unit}]" if check.unit else name, fontsize="small")
            axes.grid(alpha=0.3)
        for axes in panels[len(real) :]:
            axes.axis("off")
        panels[0].legend(fontsize="x-small")


def _distribution(check: CtCheck) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of a check's curve."""
    values, distributions = check.values[check.defined], check.values.shape[1]
    if distributions > 1:
        return np.arange(distributions) / distributions, np.median(values[:, :, 0], axis=0)
    ordered = np.sort(values.ravel())
    return ordered, (np.arange(len(ordered)) + 1) / max(len(ordered), 1)


def _tile(samples: Samples, index: int, *, close_up: bool = False) -> Tile:
    """A picture; `close_up`: the middle 28 mm of a nodule's patch."""
    is_nodule = samples.spacing_mm < 1
    side = _NODULE_PX if is_nodule else _LUNG_PX
    cut = _MARGIN_PX if close_up and is_nodule else 0
    plane = samples.hu[index, cut : samples.hu.shape[1] - cut, cut : samples.hu.shape[2] - cut]
    grey = Image.fromarray(DISPLAY_WINDOW.to_grey(plane))
    return repeat(np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC)), "h w -> h w c", c=3)
