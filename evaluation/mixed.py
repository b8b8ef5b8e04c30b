"""Real and generated samples in one picture, in seeded order, and the key to it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.tables import markdown_table
from lungsynth.cohort.montage import Tile, tile_block
from lungsynth.io.atomic import write_picture, write_text

__all__ = ["write_mixed"]

_COLUMNS = 8


def write_mixed(tiles: Sequence[tuple[Tile, str]], folder: Path, *, what: str, rng: np.random.Generator) -> None:
    """Writes `mixed.png`, and `mixed_key.md`: which is which.

    Args:
        tiles: pictures of one size, and what each is: "real" or "generated", and more.
        folder: of both files.
        what: the two sides, for the key's title.
        rng: shuffles.
    """
    mixed = [tiles[i] for i in rng.permutation(len(tiles))]
    real = sum(name.startswith("real") for _, name in tiles)
    caption = f"{real} real, {len(tiles) - real} generated: which?  Rows from the top, columns from the left"
    write_picture(
        folder / "mixed.png", Image.fromarray(tile_block(caption, [tile for tile, _ in mixed], columns=_COLUMNS))
    )
    lines = []
    for number, start in enumerate(range(0, len(mixed), _COLUMNS), start=1):
        names = [name for _, name in mixed[start : start + _COLUMNS]]
        lines.append([str(number), *names, *[""] * (_COLUMNS - len(names))])
    head = ["row", *map(str, range(1, _COLUMNS + 1))]
    write_text(folder / "mixed_key.md", f"# Key of mixed.png: {what}\n\n" + markdown_table(head, lines))
