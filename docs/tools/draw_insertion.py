"""Draws a scan in three planes through an inserted nodule, before (above) and after (below).

python docs/tools/draw_insertion.py OUT --nodule 1 --out docs/images/insertion.png

OUT: lungsynth insert SCAN --out OUT --pairs --nodules "..."; SCAN must be one whose licence lets it be shown.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from PIL import Image

from lungsynth.hounsfield import DISPLAY_WINDOW

FIELD_MM = 90.0
TILE_PX = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--nodule", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = pd.read_csv(args.run / "nodules.csv")
    row = rows[(rows["name"] == "scan0001") & (rows["number"] == args.nodule)].iloc[0]
    centre = np.array([row[f"centre_voxel_{axis}"] for axis in ("slice", "row", "column")])
    lines = [planes(args.run / "images" / f"{name}.nii.gz", centre) for name in ("scan0001-without", "scan0001")]
    Image.fromarray(np.vstack([np.hstack(line) for line in lines])).save(args.out, optimize=True)


def planes(path: Path, centre: np.ndarray) -> list[np.ndarray]:
    """Axial, coronal and sagittal plane through a place; superior is above."""
    image = nib.load(path)
    hu = np.asarray(image.dataobj).transpose(2, 1, 0)
    spacing_mm = np.asarray(image.header.get_zooms()[::-1], dtype=float)
    reach = np.ceil(FIELD_MM / 2 / spacing_mm).astype(int)
    padded = np.pad(hu, [(int(r), int(r)) for r in reach], constant_values=-1000)
    middle = np.rint(centre).astype(int) + reach
    cut = padded[tuple(slice(int(m - r), int(m + r) + 1) for m, r in zip(middle, reach, strict=True))]
    depth, height, width = reach.tolist()
    shown = (cut[depth], cut[::-1, height], cut[::-1, :, width])
    return [np.asarray(Image.fromarray(DISPLAY_WINDOW.to_grey(p)).resize((TILE_PX, TILE_PX), 3)) for p in shown]


if __name__ == "__main__":
    main()
