"""Layers at the paper's scale: planning and rendering, each against a named alternative in the same run.

python benchmarks/layers.py [--json FILE] [--only plan|render] [--repeats N]
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import layers_plan

PARTS = ("plan", "render")


def main(argv: list[str] | None = None) -> None:
    """Measures, prints one table, and writes the keys when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--only", choices=PARTS, help="leave out the other part")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the best counts (default: 3)")
    args = parser.parse_args(argv)
    keys: dict[str, float] = {}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    for part in [args.only] if args.only else PARTS:
        found, lines = _module(part).measure(args.repeats)
        keys.update(found)
        print("\n".join(lines), flush=True)
    if args.json:
        args.json.write_text(json.dumps(keys, indent=1) + "\n", encoding="utf-8")


def _module(part: str) -> object:
    if part == "plan":
        return layers_plan
    import layers_render  # needs MONAI, which takes seconds that planning need not wait for

    return layers_render


if __name__ == "__main__":
    main()
