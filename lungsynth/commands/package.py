"""`lungsynth package`: bundles as folders and zips to share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lungsynth.commands.command import Command, Report, add_bundles

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
    add(
        "--publish-dry-run",
        action="store_true",
        help="check what the MONAI model zoo would check, and write what the zoo and a hub would get; sends nothing",
    )


def _package(options: argparse.Namespace) -> Report:
    from lungsynth.package_bundles import package_bundles, zip_bundle

    folders = package_bundles(
        options.out, bundles=options.bundles, weights=options.weights, overwrite=options.overwrite
    )
    if options.publish_dry_run:
        return _report_publishing(folders, options.out)
    return Report([str(zip_bundle(folder) if options.zip else folder) for folder in folders])


def _report_publishing(folders: Sequence[Path], out: Path) -> Report:
    from lungsynth.package_bundles import MAX_FILE_MB, plan_publishing

    lines = []
    for plan in plan_publishing(folders, out):
        name, megabytes = plan.largest
        lines += [
            f"{plan.name} {plan.version}: the model zoo's checks pass",
            f"  {plan.files} files, {plan.megabytes:.1f} MB; the largest is {name} with {megabytes:.1f} MB "
            f"(at most {MAX_FILE_MB})",
            f"  zoo  a pull request with {plan.name}/ under models/; its table gets the entry in "
            f"{out / 'model_info.json'}; archive {plan.archive.name}",
            f"  hub  {plan.push_command}",
        ]
    return Report([*lines, "Nothing was sent."])


PACKAGE = Command(
    "Copies the bundles as clean folders and zips, with the weights of the repository or of a training.",
    _add_package,
    _package,
)
