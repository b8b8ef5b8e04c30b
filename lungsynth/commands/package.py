"""`lungsynth package`: bundles as folders and zips to share."""

import argparse
from pathlib import Path

from lungsynth.commands.arguments import Command, Report, add_bundles

__all__ = ["PACKAGE"]


def _add_package(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the packaged bundles")
    add(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="take the weights of bundle NAME (lung_seg, wcapsgan, cyclegan) from RUN, a training's output_dir",
    )
    add_bundles(parser)
    add("--zip", action="store_true", help="also write <bundle>_v<version>.zip")
    add("--overwrite", action="store_true", help="replace bundles that are already in --out")


def _package(options: argparse.Namespace) -> Report:
    from lungsynth.package_bundles import package_bundles, zip_bundle

    folders = package_bundles(
        options.out, bundles=options.bundles, weights=options.weights, overwrite=options.overwrite
    )
    return Report([str(zip_bundle(folder) if options.zip else folder) for folder in folders])


PACKAGE = Command(
    "Copies the bundles as clean folders and zips, with the weights of the repository or of a training.",
    _add_package,
    _package,
)
