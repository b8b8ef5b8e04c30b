"""Fuzz: malformed inputs over all readers and entry points, each in a process of its own under limits.

`make fuzz`, or `python tests/campaigns/fuzz.py [--cases 600] [--seed 0] [--only export] [--keep FOLDER]`. Every case
ends in success or in one sentence with status 2, within 20 s and 2 GB, without a traceback, a file left behind, a path
outside OUT, or code run from data. A case is drawn from the seed and its number alone: `--cases 40 --first 37` repeats
the cases 37 to 39. Configs of bundles are damaged, too, but no expression is put into them: a bundle is code
(docs/reference/privacy.md).
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "campaigns")]
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from damage import Chance, damage
from sandbox import Ending, fresh, run_case

Arguments = Sequence[str]
_MODULES = ("lungsynth.export.writer", "lungsynth.export.growth", "lungsynth.placement.explain", "lungsynth.generate")
_MODULES += ("lungsynth.pseudo_labels.run", "evaluation.segmentation.folds")


@dataclass(frozen=True)
class Scenario:
    """An entry point with the files that it reads.

    Args:
        name: `command/what is damaged`.
        base: folder that is copied for each case.
        targets: patterns of the files of which one is damaged; none where the arguments are what is malformed.
        arguments: of the command, where `{}` is the case's folder; one of several is drawn.
        program: `lungsynth` or `lungsynth-eval`.
    """

    name: str
    base: Path
    targets: Sequence[str]
    arguments: Sequence[Arguments]
    program: str = "lungsynth"


def make_bases(folder: Path, only: str = "") -> None:
    """Writes sound inputs: sources in each format, a cohort, bundles, a generated run, a plan and its exports.

    Args:
        folder: of them all.
        only: what scenarios are named by; what none of these needs is not made.
    """
    needed = _commands(only)
    _make_sources(folder, prepared=bool(needed & {"prepare", "pseudo-label"}))
    common = ["--bundles", f"{folder}/made/bundles"]
    if needed - {"export"}:
        from fake_bundles import write_fake_bundles

        for bundle in sorted(write_fake_bundles(folder / "made" / "bundles", "fuzz").iterdir()):
            (bundle / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0"}), encoding="utf-8")
    if needed & {"generate", "plan", "export"}:
        sizes = ["--lungs", "2", "--groups", "3", "--keep", "4", "--nodules", "4"]
        catalogue = f"{folder}/made/plan/catalogue.parquet"
        _sound(
            "plan", "--out", catalogue, *sizes, *(common if needed - {"export"} else _toys(folder / "made" / "plan"))
        )
        _sound("export", catalogue, "--format", "png", "--out", f"{folder}/made/exported", "--range", "0:3")
    if "generate" in needed:
        from fake_cohort import write_fake_cohort

        (folder / "made" / "cohort").mkdir()
        write_fake_cohort(folder / "made" / "cohort", _sampler(folder / "made" / "bundles"))
        run = ["--count", "4", "--seed", "1", "--cohort", f"{folder}/made/cohort", "--selection", "none"]
        _sound("generate", "--out", f"{folder}/made/out", *run, *common, "--tracking-uri", "none")
        for path in [*(folder / "made" / "out" / ".parts").glob("*.json")][1:]:
            path.unlink()  # so that a run goes on
    (folder / "made" / "rules.json").write_text(json.dumps({"gap_mm": 2.0, "regions": ["left"]}), encoding="utf-8")
    _make_folds(folder / "folds")


def _commands(only: str) -> set[str]:
    """The commands that scenarios of such names run."""
    commands = {"prepare", "pseudo-label", "generate", "plan", "export", "package", "folds"}
    return {name for name in commands if name in only} or commands


def _toys(folder: Path) -> list[str]:
    """A library of drawn nodules and lungs, for which no network is opened; the options that name it."""
    from placement_toys import add_lung, add_nodule

    from lungsynth.placement.assets import AssetLibrary

    library = AssetLibrary(folder)
    for seed in range(2):
        add_lung(library, seed=seed)
    for diameter_mm in (6.0, 9.0, 12.0):
        add_nodule(library, diameter_mm)
    library.save_table()
    return ["--library", str(folder)]


def _sound(*arguments: str) -> None:
    """Runs a command that must succeed, without a word."""
    from lungsynth.cli import main

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as told:
        status = main(arguments)
    if status:
        raise SystemExit(f"the sound command failed: {arguments}: {told.getvalue()}")


def _make_sources(folder: Path, *, prepared: bool) -> None:
    """Phantoms in three layouts, one folder each, and a cohort of them beside bundles."""
    from lungsynth.cohort.phantom.files import make_phantom_cohort

    if not prepared:
        return
    make_phantom_cohort(folder / "phantom", patients=3, seed=3, size_px=96, slices=12, slice_spacing_mm=14.0)
    for source in sorted((folder / "phantom").iterdir()):
        (folder / "sources" / source.name).mkdir(parents=True)
        shutil.copytree(source, folder / "sources" / source.name / "in")
    _small_sources(folder / "sources")
    both = folder / "prepared_with_bundles"
    _sound("prepare", str(folder / "phantom"), "--out", str(both / "cohort"), "--workers", "1")
    from fake_bundles import write_fake_bundles

    write_fake_bundles(both / "bundles", "fuzz")


def _make_folds(folder: Path) -> None:
    """Two evaluated folds."""
    for fold in ("f0", "f1"):
        (folder / fold / ".parts").mkdir(parents=True)
        row = {"method": "dense_unet", "training": "held_out"}
        table = {"format": 2, "split_hash": fold, "rows": [row]}
        (folder / fold / "table_1.json").write_text(json.dumps(table), encoding="utf-8")
        record = {"operating_point": 0.5, "crops": {}, "composites": [], "scans": {}}
        content = {"format": 2, "identity": "a", "record": record}
        (folder / fold / ".parts" / "dense_unet.json").write_text(json.dumps(content), encoding="utf-8")


def _small_sources(folder: Path) -> None:
    """A NIfTI pair without compression, and a zip of DICOM, beside what the phantom has."""
    import gzip

    (folder / "nii" / "in").mkdir(parents=True)
    for path in sorted(folder.glob("*/in/**/*.nii.gz"))[:2]:
        name = f"{path.parent.name}_{path.name.removesuffix('.gz')}"
        (folder / "nii" / "in" / name).write_bytes(gzip.decompress(path.read_bytes()))
    series = sorted({path.parent for path in folder.glob("*/in/**/*.dcm")})
    if series:
        (folder / "zip" / "in").mkdir(parents=True)
        with zipfile.ZipFile(folder / "zip" / "in" / "scan.zip", "w") as archive:
            for path in sorted(series[0].iterdir()):
                archive.write(path, f"scan/{path.name}")


def _sampler(bundles: Path) -> Callable[..., dict[str, object]]:
    from lungsynth.bundles import open_bundle

    sampler: Callable[..., dict[str, object]] = open_bundle(bundles, "wcapsgan")
    return sampler


def scenarios(bases: Path) -> list[Scenario]:
    """All entry points, cheap ones more often than dear ones."""
    prepare = ("prepare", "{}/in", "--out", "{}/out", "--workers", "1")
    prepares = [
        Scenario(f"prepare/{source.name}", source, ("in/**/*",), [prepare])
        for source in sorted((bases / "sources").glob("*"))
    ]
    made, formats = bases / "made", ("nifti", "nnunet", "msd", "luna16", "dicom", "png", "webdataset", "zarr")
    exports = [("export", "{}/plan/catalogue.parquet", "--format", name, "--out", "{}/rendered") for name in formats]
    untracked = ("--bundles", "{}/bundles", "--tracking-uri", "none")
    seeded = ("--count", "4", "--seed", "1", "--cohort", "{}/cohort", "--selection", "none")
    run = ("generate", "--out", "{}/out", *seeded, *untracked)
    sizes = ("--lungs", "2", "--groups", "3", "--keep", "4", "--nodules", "4", "--bundles", "{}/bundles")
    plan = ("plan", "--out", "{}/plan/catalogue.parquet", *sizes)
    ruled = ("plan", "--out", "{}/out/new.parquet", "--library", "{}/plan", *sizes)
    explain = (*plan, "--explain", "0:0")
    pseudo = ("pseudo-label", "--cohort", "{}/cohort", "--out", "{}/out", *untracked)
    fresh_run = ("generate", "--out", "{}/new", "--count", "2", *untracked)
    lists = ("cohort/*.json", "cohort/*.csv")
    return [
        *prepares,
        Scenario("export/catalogue", made, ("plan/*.parquet",), exports),
        Scenario("export/assets", made, ("plan/assets/*.npy", "plan/assets.parquet"), exports),
        Scenario("export/state", made, ("exported/export.json", "exported/.parts/*.json"), [_continued()]),
        Scenario("generate/state", made, ("out/*.json", "out/.parts/*.json", "out/*.parquet"), [run]),
        Scenario("generate/assets", made, ("out/assets/*.npy",), [run]),
        Scenario("generate/cohort", made, (*lists, "cohort/*/*"), [(*run[:2], "{}/new", *run[3:])]),
        Scenario("generate/weights", made, ("bundles/*/models/*",), [fresh_run]),
        Scenario("generate/configs", made, ("bundles/*/configs/*.json",), [fresh_run]),
        Scenario("generate/options", made, (), list(_options("generate", "{}/new", untracked))),
        Scenario("plan/state", made, ("plan/*.json", "plan/*.parquet"), [plan]),
        Scenario("plan/explain", made, ("plan/*.parquet",), [explain]),
        Scenario("plan/rules", made, ("rules.json",), [(*ruled, "--rules", "{}/rules.json")]),
        Scenario("plan/options", made, (), list(_options("plan", "{}/out/new.parquet", ()))),
        Scenario("export/options", made, (), list(_export_options())),
        Scenario("package", made, ("bundles/*/models/*.json", "bundles/*/configs/*.json"), [_packaged()]),
        Scenario("pseudo-label/cohort", bases / "prepared_with_bundles", (*lists, "cohort/.parts/*.json"), [pseudo]),
        Scenario(
            "pseudo-label/images", bases / "prepared_with_bundles", ("cohort/slices/*", "cohort/nodules/*"), [pseudo]
        ),
        Scenario("folds", bases / "folds", ("f*/table_1.json", "f*/.parts/*.json"), [_folded()], "lungsynth-eval"),
    ]


def _continued() -> Arguments:
    return ("export", "{}/plan/catalogue.parquet", "--format", "png", "--out", "{}/exported")


def _packaged() -> Arguments:
    return ("package", "--out", "{}/packages", "--bundles", "{}/bundles", "--zip")


def _folded() -> Arguments:
    return ("folds", "{}/f0", "{}/f1", "--out", "{}/out")


def _options(command: str, out: str, more: Arguments) -> Iterator[Arguments]:
    """Numbers that nobody can mean."""
    names = {"generate": ("--count", "--lungs", "--groups", "--batch-size"), "plan": ("--keep", "--lungs", "--groups")}
    sizes = () if command == "generate" else ("--lungs", "2", "--groups", "2", "--keep", "2", "--library", "{}/plan")
    for name in names[command]:
        for value in ("0", "-1", "1000000000", "99999999999999999999"):
            yield (command, "--out", out, "--bundles", "{}/bundles", *sizes, name, value, *more[2:])
    for name, value in (("--seed", "-1"), ("--seed", "99999999999999999999"), ("--cohort", "{}/nowhere")):
        yield (command, "--out", out, "--bundles", "{}/bundles", *sizes, name, value, *more[2:])


def _export_options() -> Iterator[Arguments]:
    start = ("export", "{}/plan/catalogue.parquet", "--format", "png", "--out", "{}/rendered")
    for option in (
        ("--range", "3:2"), ("--range", "0:99999999999"), ("--range", "-5:2"), ("--workers", "0"), ("--workers", "-3"),
        ("--growth", "0,9999", "--doubling-days", "0.001"), ("--growth", "5,1"),
        ("--growth", "0,10", "--doubling-days", "nan"), ("--growth", "0,10", "--doubling-days", "-1"),
        ("--library", "{}/nowhere"), ("--library", "{}/rules.json"),
    ):  # fmt: skip
        yield (*start, *option)


def run_number(number: int, seed: int, choices: Sequence[Scenario], work: Path) -> tuple[str, str, Ending]:
    """Runs a case.

    Returns:
        The scenario, what was malformed, and how it ended.
    """
    from lungsynth.cli import main

    scenario = choices[number % len(choices)]
    rng = Chance(f"{seed}/{number}")
    rng.outside = fresh(work / "outside")
    (rng.outside / "escaped").write_text("as it was", encoding="utf-8")
    case = work / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(scenario.base, case)
    arguments = [argument.replace("{}", str(case)) for argument in rng.choice(scenario.arguments)]
    told = " ".join(arguments[-4:]).replace(str(case), "")
    if scenario.targets:
        paths = sorted(path for pattern in scenario.targets for path in case.glob(pattern) if path.is_file())
        told = damage(rng.choice(paths), rng)
    run = importlib.import_module("evaluation.cli").main if scenario.program == "lungsynth-eval" else main
    out = Path(arguments[arguments.index("--out") + 1]).relative_to(case).parts[0]

    def command() -> int:
        _forget_bundles()
        return run(arguments)

    return scenario.name, told, run_case(command, case, out=out, outside=rng.outside)


def _forget_bundles() -> None:
    """Lets a case open its own copies of the bundles that the sound commands have opened in this process."""
    for name in [name for name in sys.modules if name.startswith("fuzz_")]:
        del sys.modules[name]
    sys.path[:] = [place for place in sys.path if not place.endswith("_bundle")]
    importlib.invalidate_caches()


def campaign(cases: Sequence[int], seed: int, *, only: str = "", keep: Path | None = None) -> list[str]:
    """Runs cases, prints their counts, and returns a line for each that had a fault."""
    warnings.filterwarnings("ignore")
    faults, counts, begun = [], Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lungsynth-fuzz-") as name:
        bases, work = Path(name) / "bases", Path(name) / "work"
        make_bases(bases, only)
        for module in _MODULES if _commands(only) != {"export"} else _MODULES[:2]:
            importlib.import_module(module)  # once, for all children
        choices = [scenario for scenario in scenarios(bases) if only in scenario.name]
        for number in cases:
            scenario, told, ending = run_number(number, seed, choices, work)
            status = {0: "0", 2: "2"}.get(ending.status if ending.status is not None else -1, "other")
            counts.update(
                [f"{scenario.split('/')[0]}: status {status}", "cases", *(["faulty"] if ending.faults else [])]
            )
            if ending.faults:
                line = f"{number} {scenario}: {told}: {'; '.join(ending.faults)}"
                faults.append(f"{line}\n    {ending.told.strip()[-400:]}")
                print(faults[-1], flush=True)
                if keep:
                    shutil.copytree(work / "case", keep / str(number), dirs_exist_ok=True)
    for name, count in sorted(counts.items()):
        print(f"{count:6} {name}")
    print(f"{time.monotonic() - begun:.0f} s")
    return faults


def main_of_campaign() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=600, help="number of cases (default: 600)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases (default: 0)")
    parser.add_argument("--only", default="", help="scenarios whose names hold this text")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of faulty cases")
    options = parser.parse_args()
    numbers = range(options.first, options.cases)
    return 1 if campaign(numbers, options.seed, only=options.only, keep=options.keep) else 0


if __name__ == "__main__":
    sys.exit(main_of_campaign())
