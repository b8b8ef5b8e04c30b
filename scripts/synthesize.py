"""Makes labelled synthetic lung CT slices with the chain, or goes on with a run that was stopped."""

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lungsynth.errors import InputError

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; one of the same settings is continued"
    )
    parser.add_argument("--count", type=int, required=True, help="samples to end with")
    parser.add_argument("--seed", type=int, required=True, help="of everything random; same seed, same bytes")
    parser.add_argument(
        "--cohort", type=Path, help="folder written by scripts/prepare.py, to mix in real lungs and nodules"
    )
    parser.add_argument(
        "--bundles", type=Path, default=BUNDLES, help="folder of the three bundles (default: this repository's)"
    )
    parser.add_argument("--no-enhance", dest="enhance", action="store_false", help="leave out the CycleGAN")
    parser.add_argument(
        "--no-gate",
        dest="gate",
        action="store_false",
        help="do not ask lung_seg_bundle whether it still finds the nodules that it found before the CycleGAN",
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, help="samples between two reports of progress; no byte depends on it"
    )
    parser.add_argument(
        "--tracking-uri", help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db)"
    )
    parser.add_argument("--lungs", type=int, help="distinct lungs (default: the root of 2.5 COUNT, at most 500)")
    parser.add_argument("--groups", type=int, help="nodule groups (default: 2.5 COUNT / LUNGS, more when too few fit)")
    parser.add_argument(
        "--real-share", type=float, help="share of real lungs, and of real nodules (default: the paper's, 1/10 and 1/6)"
    )
    parser.add_argument(
        "--spare-diseased",
        action="store_true",
        help="use nothing of the patients in enhancement.json: for composites that the CycleGAN is trained on",
    )
    _add_selection(parser)
    return parser.parse_args(arguments)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranking",
        choices=("spread", "similar", "none"),
        help="with a cohort, which generated nodules and lungs are kept: each real one in turn takes the most similar "
        "(default), the paper's most similar of all, or all that come; copies of training samples never are",
    )
    parser.add_argument("--candidates", type=int, help="generated for each one kept (default: 3 where they are ranked)")


def told_of_selection(figures: Mapping[str, float], *, ranked: bool) -> str:
    """A sentence on how the generated nodules and lungs were chosen."""
    if not ranked:
        return "Without --cohort, generated nodules and lungs are neither ranked nor compared with training samples"
    told = []
    for kind in ("nodules", "lungs"):
        made, kept, copies, unlike = (
            f"{figures[f'{kind}_candidates_{name}']:.0f}" for name in ("generated", "kept", "copies", "unlike")
        )
        told.append(f"of {made} generated {kind} {kept} were kept, {copies} were near-copies and {unlike} unlike real")
    return f"By comparison with the cohort's training part, {'; '.join(told)}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the chain and says where the results stand.

    Returns:
        0, 2 after bad input, 130 after Ctrl-C.
    """
    options = vars(parse_args(arguments))
    uri = options.pop("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    # Imported here, because torch, MONAI and MLflow take seconds that --help need not wait for.
    from lungsynth.chain.run import run_chain
    from lungsynth.chain.settings import ChainSettings
    from lungsynth.tracking import DEFAULT_URI, ui_command

    try:
        result = run_chain(ChainSettings(**options), tracking_uri=uri or DEFAULT_URI)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    check = result.figures["check"]
    print(
        f"Of {check['checked_nodules']:.0f} nodules on {check['checked_samples']:.0f} slices, lung_seg_bundle finds "
        f"{check['nodules_found']:.0%}, and {check['other_findings_per_slice']:.1f} other findings a slice"
    )
    print(told_of_selection(result.figures["assets"], ranked=options["cohort"] is not None))
    print(f"Contact sheet    {result.out / 'contact_sheet.png'}")
    print(f"Images           {result.out / 'images'}")
    print(f"Labels           {result.out / 'masks'} and {result.out / 'annotations.csv'}")
    print(f"Catalogue        {result.out / 'catalogue.parquet'}")
    print(f"MLflow database  {result.tracking_uri}")
    print(f"Open the UI with {ui_command(result.tracking_uri)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
