"""What the threshold of `lungsynth pseudo-label` costs: nodules missed against normal slices thrown away.

python benchmarks/separation.py --cohort COHORT [--bundles DIR] [--gap-mm MM] [--json FILE] [--montage PNG]

Patients of the validation and test parts only. A slice is taken out of the normal set at a threshold when a candidate
of at least that probability reaches it or comes as near as the gap; so each slice has one number, the highest
probability that takes it out, and all thresholds follow from it. The rule is that of `lungsynth.pseudo_labels`.

- impurity: slices that show a nodule and would count as normal, of all that show one. On composites (held-out nodules
  laid on held-out normal slices) and on the slices of experts' masks.
- discarded: normal slices that would be thrown away, of all normal ones. Of series that an expert has looked at, and of
  series that nobody has looked at, where some may be no error.

The montage shows both at the operating point: normal slices that would be thrown away, and slices with a nodule
(outlined) that would count as normal.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from separation_composites import CompositeSettings, HeldOutNodules, insert_nodules
from tqdm import tqdm

from lungsynth.bundles import read_weights
from lungsynth.cohort.montage import Tile, outlined, spread, stack_blocks, tile_block
from lungsynth.cohort.reader import Cohort
from lungsynth.cohort.schema import SeriesRow, SliceRow
from lungsynth.cohort.series_rows import SeriesRows
from lungsynth.cohort.slices import SliceStack, read_stacks
from lungsynth.errors import InputError
from lungsynth.hounsfield import Label
from lungsynth.io.atomic import write_json, write_picture
from lungsynth.pseudo_labels.candidates import find_candidates, open_detector, operating_point
from lungsynth.pseudo_labels.series import still_normal
from lungsynth.types import CandidateDetector, HuPlane, MaskPlane

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
HELD_OUT = ("validation", "test")
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.993, 0.996, 0.998, 0.999)
SIZES_MM = (0, 6, 10, 20, np.inf)
GROUPS = {
    "impurity_composites": "nodule slices kept, composites",
    "impurity_expert": "nodule slices kept, experts' masks",
    "discarded_expert": "normal slices lost, expert looked",
    "discarded_unseen": "normal slices lost, nobody looked",
}
BOOTSTRAPS = 2000
FEWEST_PATIENTS = 5  # with fewer, an interval over patients says nothing
TILE_PX, TILES, COLUMNS = 224, 24, 8  # of a block of the montage
INSERTED_HU = 60  # a composite differs by more from its slice where its nodule is


@dataclass(frozen=True)
class Seen:
    """A slice: its group, whose it is, which nodule (composites), its diameter, what takes it out, and its picture."""

    group: str
    patient: str
    nodule: str
    diameter_mm: float
    taken_out_at: float
    tile: Tile


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True, help="folder written by scripts/prepare.py")
    parser.add_argument("--bundles", type=Path, default=BUNDLES)
    parser.add_argument("--min-diameter-mm", type=float, default=3.0, metavar="MM")
    parser.add_argument("--gap-mm", type=float, metavar="MM", help="around a candidate (default: the cohort's)")
    parser.add_argument("--rounds", type=int, default=6, help="times that nodules are laid on the lungs (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the composites and of the intervals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--montage", type=Path, metavar="PNG", help="also draw what was lost and what was kept")
    return parser.parse_args(argv)


def held_out(source: Cohort) -> Iterator[tuple[SeriesRows, SeriesRow]]:
    splits = source.splits
    for rows in source.pieces:
        if rows.slices and splits[rows.series[0].series_id] in HELD_OUT:
            yield rows, rows.series[0]


def stacks_of(source: Cohort, series: SeriesRow, rows: SeriesRows) -> Iterator[tuple[SliceStack, list[SliceRow]]]:
    """The stacks of a series, with the rows of their slices."""
    by_index = {row.index: row for row in rows.slices}
    for stack in read_stacks(source.folder, series, list(by_index)):
        yield stack, [by_index[stack.first + place] for place in range(len(stack))]


def taken_out_at(
    detector: CandidateDetector, stack: SliceStack, slices: Sequence[SliceRow], *, min_diameter_mm: float, gap_mm: float
) -> np.ndarray:
    """For each slice of a stack the highest threshold that still takes it out; 0 when none does."""
    slice_mm = stack.volume.spacing_mm[0]
    rows = [replace(row, normal=True) for row in slices]
    highest = np.zeros(len(rows))
    for candidate in find_candidates(detector, stack.volume):
        if candidate.diameter_mm >= min_diameter_mm:
            near = candidate.slices(slice_mm=slice_mm, depth=len(rows))
            reach = range(stack.first + near.start, stack.first + near.stop)
            kept = still_normal(rows, [reach], slice_mm=slice_mm, gap_mm=gap_mm)
            highest = np.maximum(highest, np.where(kept, 0, candidate.probability))
    return highest


def look_at_scans(source: Cohort, look: Any) -> Iterator[Seen]:
    """The scans as they are: slices of experts' masks, and normal slices."""
    for rows, series in tqdm(list(held_out(source)), desc="scans", unit="series"):
        looked = "expert" if series.nodule_mask == "data" else "unseen"
        for stack, slices in stacks_of(source, series, rows):
            for place, (row, at) in enumerate(zip(slices, look(stack, slices), strict=True)):
                group = _group(row, looked)
                if group is not None:
                    tile = _tile(stack.volume.plane(place), stack.labels[place] == Label.NODULE)
                    yield Seen(group, series.patient_id, "", np.nan, at, tile)


def _group(row: SliceRow, looked: str) -> str | None:
    if row.normal:
        return f"discarded_{looked}"
    return "impurity_expert" if row.shows_nodule and looked == "expert" else None


def look_at_composites(source: Cohort, look: Any, settings: CompositeSettings) -> Iterator[Seen]:
    """Nodules of held-out patients on normal slices of held-out patients."""
    nodules = HeldOutNodules(source, HELD_OUT, seed=settings.seed)
    hosts = [(rows, series) for rows, series in held_out(source) if any(row.normal for row in rows.slices)]
    jobs = [(number, *host) for number in range(settings.rounds) for host in hosts]
    for number, rows, series in tqdm(jobs, desc="composites", unit="series"):
        for stack, slices in stacks_of(source, series, rows):
            rng = np.random.default_rng([settings.seed, number, stack.first, len(stack)])
            normal = np.array([row.normal for row in slices])
            composite, inserted = insert_nodules(stack, normal, nodules, rng, settings)
            if inserted:
                at = look(composite, slices)
                for k, nodule in inserted.items():
                    hu = composite.volume.plane(k)
                    tile = _tile(hu, np.abs(hu - stack.volume.plane(k)) > INSERTED_HU)
                    about = ("impurity_composites", nodule.patient_id, nodule.nodule_id, nodule.diameter_mm)
                    yield Seen(*about, at[k], tile)


def _tile(hu: HuPlane, nodule: MaskPlane) -> Tile:
    """The middle square of a slice, a nodule outlined."""
    side = min(hu.shape)
    top, left = ((size - side) // 2 for size in hu.shape)
    middle = (slice(top, top + side), slice(left, left + side))
    return outlined(hu[middle], nodule[middle], TILE_PX)


def write_montage(path: Path, seen: Sequence[Seen], threshold: float) -> None:
    """Draws some of the normal slices that are lost at a threshold, and of the nodule slices that are kept."""
    lost = [s for s in seen if s.group.startswith("discarded") and s.taken_out_at >= threshold]
    kept = [s for s in seen if s.group.startswith("impurity") and s.taken_out_at < threshold]
    blocks = [
        tile_block(f"{name}: {min(len(of), TILES)} of {len(of)}", [s.tile for s in spread(of, TILES)], columns=COLUMNS)
        for name, of in (("normal slices lost", lost), ("nodule slices kept as normal", kept))
        if of
    ]
    write_picture(path, stack_blocks(blocks))


def share(hits: np.ndarray, patients: Sequence[str], rng: np.random.Generator) -> dict[str, float | None]:
    """A share, with its 95 % interval over patients where there are enough of them."""
    if not len(hits):
        return {"value": None, "low": None, "high": None}
    names, which = np.unique(patients, return_inverse=True)
    of_patient = np.array([np.bincount(which, weights=hits), np.bincount(which)])
    ends: list[float | None] = [None, None]
    if len(names) >= FEWEST_PATIENTS:
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAPS)
        sums = of_patient @ drawn.T
        ends = np.quantile(sums[0] / sums[1], (0.025, 0.975)).round(4).tolist()
    return {"value": round(float(np.mean(hits)), 4), "low": ends[0], "high": ends[1]}


def figures_at(seen: Sequence[Seen], threshold: float, seed: int) -> dict[str, Any]:
    """The figures of one threshold."""
    rng = np.random.default_rng(seed)
    row: dict[str, Any] = {"threshold": threshold}
    for group in GROUPS:
        members = [s for s in seen if s.group == group]
        out = np.array([s.taken_out_at >= threshold for s in members], dtype=float)
        row[group] = share(1 - out if group.startswith("impurity") else out, [s.patient for s in members], rng)
    composites = [s for s in seen if s.group == "impurity_composites"]
    row["impurity_by_mm"] = {
        f"{low}-{high}": share(
            np.array([s.taken_out_at < threshold for s in composites if low <= s.diameter_mm < high], dtype=float),
            [s.patient for s in composites if low <= s.diameter_mm < high],
            rng,
        )
        for low, high in pairwise(SIZES_MM)
    }
    return row


def counts(seen: Sequence[Seen]) -> dict[str, dict[str, int]]:
    result = {}
    for group in GROUPS:
        members = [s for s in seen if s.group == group]
        result[group] = {"slices": len(members), "patients": len({s.patient for s in members})}
    composites = [s for s in seen if s.group == "impurity_composites"]
    result["impurity_composites"]["nodules"] = len({s.nodule for s in composites})
    return result


def _text(figure: dict[str, float | None]) -> str:
    if figure["value"] is None:
        return "-"
    ends = "" if figure["low"] is None else f" [{100 * figure['low']:.1f}, {100 * (figure['high'] or 0):.1f}]"
    return f"{100 * figure['value']:.1f}{ends}"


def print_table(result: dict[str, Any]) -> None:
    n = result["n"]
    heads = [f"{GROUPS[g]} (n = {n[g]['slices']}, {n[g]['patients']} patients)" for g in GROUPS]
    print("| threshold | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * len(heads))
    print("| without the network | 100.0 | 100.0 | 0.0 | 0.0 |")
    for row in result["thresholds"]:
        print(f"| {row['threshold']:g} | " + " | ".join(_text(row[group]) for group in GROUPS) + " |")
    chosen = next(row for row in result["thresholds"] if row["threshold"] == result["operating_point"])
    print("\n% [95 % interval over patients, from 5 patients on]")
    print(f"composites by diameter in mm at the operating point, {chosen['threshold']:g}:")
    print(", ".join(f"{size}: {_text(figure)}" for size, figure in chosen["impurity_by_mm"].items()))


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[Seen]]:
    source = Cohort.open(args.cohort)
    weights = read_weights(args.bundles, "lung_seg")
    own_gap_mm = float(source.settings["nodule_gap_mm"])
    gap_mm = own_gap_mm if args.gap_mm is None else args.gap_mm
    detector = open_detector(args.bundles)
    point = operating_point(detector)

    def look(stack: SliceStack, slices: Sequence[SliceRow]) -> np.ndarray:
        return taken_out_at(detector, stack, slices, min_diameter_mm=args.min_diameter_mm, gap_mm=gap_mm)

    settings = CompositeSettings(rounds=args.rounds, seed=args.seed, apart_mm=own_gap_mm + 5)
    seen = [*look_at_scans(source, look), *look_at_composites(source, look, settings)]
    figures = {
        "weights": weights.sha256,
        "same_split": weights.sidecar.get("split_hash") == source.split_hash,
        "min_diameter_mm": args.min_diameter_mm,
        "gap_mm": gap_mm,
        "rounds": args.rounds,
        "seed": args.seed,
        "n": counts(seen),
        "operating_point": point,
        "thresholds": [figures_at(seen, threshold, args.seed) for threshold in sorted({*THRESHOLDS, point})],
    }
    return figures, seen


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        result, seen = measure(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if not result["same_split"]:
        print("The weights were trained with another split: these patients may have trained them.", file=sys.stderr)
    print_table(result)
    if args.json:
        write_json(args.json, result)
    if args.montage:
        write_montage(args.montage, seen, result["operating_point"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
