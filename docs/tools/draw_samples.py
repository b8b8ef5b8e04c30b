"""Draws bundles/wcapsgan_bundle/docs/samples.png: the first samples by seed of each kind.

python docs/tools/draw_samples.py bundles/wcapsgan_bundle/docs/samples.png

Lung window (-600/1500 HU). From above: nodules, lungs of 512 pixels, lungs of 256; none enlarged or selected.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lungsynth.bundles import LungGenerator, lung_generator, open_bundle
from lungsynth.hounsfield import DISPLAY_WINDOW

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
NODULES = LungGenerator(("inference.json",), "model.pt")
ROWS = ((NODULES, 16), (NODULES, 16), (NODULES, 16), (lung_generator(512), 2), (lung_generator(256), 4))
GAP_PX = 4  # between kinds


def main() -> None:
    """Draws a row after the other; rows of one generator go on where the last one ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--bundles", type=Path, default=BUNDLES)
    args = parser.parse_args()
    rows: list[np.ndarray] = []
    last, seed = None, 0
    for generator, count in ROWS:
        if generator != last:
            sampler = open_bundle(args.bundles, "wcapsgan", **generator._asdict())
            rows += [np.full((GAP_PX, rows[0].shape[1]), 255, np.uint8)] if rows else []
            last, seed = generator, 0
        categories = [sampler.categories[index % len(sampler.categories)] for index in range(count)]
        hu = sampler(list(range(seed, seed + count)), categories, [None] * count)["hu"]
        rows.append(DISPLAY_WINDOW.to_grey(np.concatenate(list(hu), axis=1)))
        seed += count
    Image.fromarray(np.concatenate(rows)).save(args.target, optimize=True)


if __name__ == "__main__":
    main()
