"""Pictures of Tables II and III: each method at the same seeds, real and generated mixed, copies, and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import repeat
from PIL import Image

from evaluation.generation.ct_checks import Check
from evaluation.generation.reference import Reference
from evaluation.generation.results import GenerationResult
from evaluation.tables import markdown_table
from lungsynth.cohort.montage import Tile, spread, tile_block
from lungsynth.hounsfield import DISPLAY_WINDOW
from lungsynth.io.atomic import replacing
from lungsynth.similarity.copies import find_copies
from lungsynth.similarity.samples import SampleKind, Samples, as_shown

__all__ = ["method_montage", "nearest_montage", "save_distributions", "save_fid_by_n", "save_picture", "write_mixed"]

_NODULE_PX, _LUNG_PX = 112, 192
_CUT_PX = 12  # of a nodule's patch, each side
_COLUMNS: Mapping[SampleKind, int] = {"nodules": 16, "lungs": 8, "slices": 8}
_MIXED_COLUMNS = 8
_MIXED = 32  # of each side
_NEAREST = 8


def method_montage(lines: Sequence[GenerationResult], reference: Reference) -> Image.Image:
    """A row a category of each method, all at the same seeds, below as many held-out samples."""
    columns, blocks = _COLUMNS[reference.kind], []
    sets = {f"held-out {reference.kind}": reference.held_out} | {
        line.generator.title: line.balanced.samples for line in lines
    }
    for title, samples in sets.items():
        for category in sorted(set(samples.categories)):
            places = samples.of(category)
            chosen = spread(places.tolist(), columns) if samples is reference.held_out else places[:columns].tolist()
            tiles = [_tile(samples, i) for i in chosen]
            tiles += [np.zeros_like(tiles[0])] * (columns - len(tiles))
            blocks.append(tile_block(f"{title}: {category}", tiles, columns=columns))
    return Image.fromarray(np.concatenate(blocks))


def write_mixed(line: GenerationResult, reference: Reference, folder: Path) -> tuple[Path, Path]:
    """`mixed.png`: 32 real and 32 generated samples in seeded order; `mixed_key.md`: which is which.

    The generated ones were asked for the categories and diameters of other held-out ones than those shown.
    """
    rng = np.random.default_rng(reference.seed)
    order, half = rng.permutation(len(reference.held_out)).tolist(), min(_MIXED, len(reference.held_out) // 2)
    made = as_shown(line.matched.samples, reference.kind)
    tiles = [(_tile(reference.pasted, i, near=True), "real", reference.held_out.categories[i]) for i in order[:half]]
    tiles += [(_tile(made, i, near=True), "generated", made.categories[i]) for i in order[half : 2 * half]]
    shown = [tiles[i] for i in rng.permutation(len(tiles))]
    columns = _MIXED_COLUMNS
    caption = f"{half} real, {half} generated: which?  Rows from the top, columns from the left"
    picture = Image.fromarray(tile_block(caption, [tile for tile, _, _ in shown], columns=columns))
    save_picture(picture, folder / "mixed.png")
    rows = [
        [str(start // columns + 1), *(f"{side} {name}" for _, side, name in shown[start : start + columns])]
        for start in range(0, len(shown), columns)
    ]
    rows = [row + [""] * (columns + 1 - len(row)) for row in rows]
    title = f"# Key of mixed.png: held-out {reference.kind} and {line.generator.title}\n\n"
    with replacing(folder / "mixed_key.md") as part:
        part.write_text(title + markdown_table(["row", *map(str, range(1, columns + 1))], rows))
    return folder / "mixed.png", folder / "mixed_key.md"


def nearest_montage(line: GenerationResult, reference: Reference) -> Image.Image:
    """The generated samples that come nearest to a training sample for their size, above it."""
    samples = as_shown(line.matched.samples, reference.kind)
    near = find_copies(samples, reference.slices, flips=reference.flips)
    ratio = near.distances / reference.threshold.at(samples.diameter_mm)
    first = np.argsort(ratio, kind="stable")[:_NEAREST].tolist()
    above = [_tile(samples, i, near=True) for i in first]
    below = [_tile(reference.slices, int(near.indices[i]), near=True) for i in first]
    numbers = ", ".join(f"{ratio[i]:.2f}" for i in first)
    mirrored = " (maybe mirrored)" if reference.flips else ""
    heads = (f"{line.generator.title}: distance / threshold {numbers}", f"nearest training samples{mirrored}")
    return Image.fromarray(
        np.concatenate(
            [tile_block(head, tiles, columns=len(tiles)) for head, tiles in zip(heads, (above, below), strict=True)]
        )
    )


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    with replacing(path) as part:
        picture.save(part, format="PNG")
    return path


def save_fid_by_n(lines: Sequence[GenerationResult], path: Path) -> Path:
    """Plots FID over n of each line."""
    from matplotlib.figure import Figure  # without pyplot no window system is asked for

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for index, line in enumerate(lines):
        points = sorted(line.figures.fid_by_n.items())
        axes.plot(*zip(*points, strict=True), "o-", label=line.generator.title, color=f"C{index % 10}")
    axes.set(title="FID falls with n by its bias alone", xlabel="n of each side", ylabel="FID", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return _save_figure(figure, path)


def save_distributions(real: Mapping[str, Check], generated: Mapping[str, Mapping[str, Check]], path: Path) -> Path:
    """Plots the cumulative distribution of each check, held-out samples in black; the power spectrum as its median.

    Args:
        real: checks of the held-out samples.
        generated: checks by method.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(real) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, (name, check) in zip(panels, real.items(), strict=False):
        sides = [("held-out", check, "k", 2.0)]
        sides += [(title, own[name], f"C{i % 10}", 1.0) for i, (title, own) in enumerate(generated.items())]
        for title, side, colour, width in sides:
            axes.plot(*_curve(side), label=title, color=colour, linewidth=width)
        axes.set_title(f"{name} [{check.unit}]" if check.unit else name, fontsize="small")
        axes.grid(alpha=0.3)
    for axes in panels[len(real) :]:
        axes.axis("off")
    panels[0].legend(fontsize="x-small")
    return _save_figure(figure, path)


def _curve(check: Check) -> tuple[np.ndarray, np.ndarray]:
    values = check.values[check.known]
    if check.values.shape[1] > 1:
        return np.arange(check.values.shape[1]) / check.values.shape[1], np.median(values[:, :, 0], axis=0)
    ordered = np.sort(values.ravel())
    return ordered, (np.arange(len(ordered)) + 1) / max(len(ordered), 1)


def _save_figure(figure: Any, path: Path) -> Path:
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110, metadata={"Software": None})
    return path


def _tile(samples: Samples, index: int, *, near: bool = False) -> Tile:
    """A picture; `near`: the middle 28 mm of a nodule's patch."""
    side = _NODULE_PX if samples.spacing_mm < 1 else _LUNG_PX
    cut = _CUT_PX if near and samples.spacing_mm < 1 else 0
    plane = samples.hu[index, cut : samples.hu.shape[1] - cut, cut : samples.hu.shape[2] - cut]
    grey = Image.fromarray(DISPLAY_WINDOW.to_grey(plane))
    return repeat(np.asarray(grey.resize((side, side), Image.Resampling.BICUBIC)), "h w -> h w c", c=3)
