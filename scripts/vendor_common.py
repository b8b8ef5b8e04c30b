"""Copies what the bundles share from bundles/common into the package of each bundle, or checks the copies."""

import argparse
import sys
from pathlib import Path

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
HEADER = "# Copied from bundles/common by `make vendor`; edit it there.\n"
TRAINING = ("atomic", "best_weights", "clock", "command_line", "precision", "processes", "provenance", "resume")
# Which modules each bundle uses.
MODULES = {
    "lung_seg": (*TRAINING, "hounsfield", "weights"),
    "wcapsgan": (*TRAINING, "hounsfield", "sliced_wasserstein", "weights"),
    "cyclegan": (*TRAINING, "hounsfield", "sliced_wasserstein", "weights"),
}


def main() -> None:
    """Copies, or with --check says which copies differ and ends with 1 when any does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 when a copy is not as it should"
    )
    if not parser.parse_args().check:
        vendor(BUNDLES)
    elif stale := differing(BUNDLES):
        sys.exit(f"{', '.join(map(str, stale))}: not what bundles/common has. Run `make vendor`.")


def vendor(bundles: Path) -> None:
    """Writes the copies and removes files that no longer are."""
    for path in differing(bundles):
        text = copies(bundles).get(path)
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


def differing(bundles: Path) -> list[Path]:
    """Copies that are missing, differ, or should not be there."""
    wanted = copies(bundles)
    present = {path for package in MODULES for path in _folder(bundles, package).glob("*.py")}
    return sorted(
        path
        for path in {*wanted, *present}
        if path not in present or path.read_text(encoding="utf-8") != wanted.get(path)
    )


def copies(bundles: Path) -> dict[Path, str]:
    """Content of each copy, by its path."""
    return {
        _folder(bundles, package) / f"{module}.py": HEADER
        + (bundles / "common" / f"{module}.py").read_text(encoding="utf-8")
        for package, modules in MODULES.items()
        for module in ("__init__", *modules)
    }


def _folder(bundles: Path, package: str) -> Path:
    return bundles / f"{package}_bundle" / package / "common"


if __name__ == "__main__":
    main()
