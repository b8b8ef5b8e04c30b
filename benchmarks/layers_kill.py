"""Kills an export at random moments until it has been killed five times, lets it end, and compares its checksums.

python benchmarks/layers_kill.py [--samples 10000] [--format webdataset] [--kills 5]
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import layers_render

RENDER = Path(__file__).resolve().parents[1] / "scripts" / "render.py"


def main() -> None:
    """Says how often it was killed, at which times, and whether the bytes are the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--format", default="webdataset")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalogue = layers_render.make_catalogue(folder / "layers", keep=args.samples)
        command = [sys.executable, str(RENDER), str(catalogue), "--format", args.format]
        started = time.monotonic()
        subprocess.run([*command, "--out", str(folder / "whole")], check=True, capture_output=True)
        seconds = time.monotonic() - started
        print(f"undisturbed: {args.samples} samples in {seconds:.0f} s")
        out, killed = folder / "killed", 0
        while killed < args.kills:
            process = subprocess.Popen(
                [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            after = chance.uniform(0.2, 1) * seconds / (args.kills + 1)
            try:
                process.wait(timeout=after + 2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
                parts = len(list((out / ".parts").glob("[0-9]*.json"))) if out.exists() else 0
                print(f"killed after {after + 2:.1f} s, {parts} parts done", flush=True)
            else:
                break
        subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
        first, second = ((folder / run / "checksums.sha256").read_bytes() for run in ("whole", "killed"))
        verdict = "equal" if first == second else "DIFFERENT"
        print(f"killed {killed} times; {len(first.splitlines())} checksums: {verdict}")
    sys.exit(first != second)


if __name__ == "__main__":
    main()
