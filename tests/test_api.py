"""What `import lungsynth as ls` gives, and what the command line makes of the library's messages."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_bundles import write_fake_bundles

import lungsynth as ls
from lungsynth.cli import COMMANDS, main, run_command
from lungsynth.commands.command import Command, Report
from lungsynth.errors import InputError
from lungsynth.placement.catalogue import read_catalogue

COMPOSITES_ALONE = ls.EnhancementConfig(enabled=False)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    return write_fake_bundles(tmp_path_factory.mktemp("bundles"), "asked")


def test_every_public_name_is_there_whatever_was_imported_before():
    for module in ("generate", "export.writer", "cohort.prepare"):
        importlib.import_module(f"lungsynth.{module}")
    assert all(callable(getattr(ls, name)) for name in ls.__all__)
    assert set(ls.__all__) <= set(dir(ls))
    with pytest.raises(AttributeError, match="no attribute 'cure'"):
        ls.cure  # noqa: B018


def test_importing_the_package_loads_neither_numpy_nor_torch():
    code = (
        "import sys, lungsynth; lungsynth.__version__; print({'numpy', 'torch', 'monai', 'mlflow'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("module", ["lungsynth.ct.read", "lungsynth.cohort.prepare", "lungsynth.generate"])
def test_what_needs_no_network_imports_none(module):
    heavy = "{'torch', 'monai', 'mlflow', 'matplotlib', 'torchmetrics', 'highdicom', 'zarr'}"
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_generate_plan_and_export_agree(bundles, tmp_path):
    shared = {"bundles": bundles, "count": 3, "seed": 4, "enhancement": COMPOSITES_ALONE}
    result = ls.generate(tmp_path / "generated", **shared)
    assert result.tracking_uri == "none"
    assert not list(tmp_path.glob("**/mlflow.db"))
    paths = (result.images, result.masks, result.annotations, result.datalist, result.catalogue, result.contact_sheet)
    assert all(path.exists() for path in paths)
    planned = ls.plan(str(tmp_path / "planned"), **shared)
    first, second = (read_catalogue(path) for path in (result.catalogue, planned.catalogue))
    assert [recipe.id for recipe in first] == [recipe.id for recipe in second]
    exported = ls.export(planned.catalogue, tmp_path / "exported")
    assert [sample["recipe"] for sample in exported.samples] == [recipe.id for recipe in first]
    for path in result.images.iterdir():
        assert path.read_bytes() == (tmp_path / "exported" / "images" / path.name).read_bytes()


def test_a_bundle_is_loaded_by_its_name(bundles):
    sampler = ls.load_bundle("wcapsgan", bundles=bundles)
    assert np.asarray(sampler([1], ["solid"], [None])["hu"]).shape == (1, 64, 64)


def test_messages_name_parameters_and_the_command_line_flags(tmp_path, capsys):
    with pytest.raises(InputError, match="`count` must be at least 1, got 0"):
        ls.generate(tmp_path, count=0)
    assert main(["generate", "--out", str(tmp_path), "--count", "0"]) == 2
    assert capsys.readouterr().err == "--count must be at least 1, got 0.\n"


def test_ctrl_c_is_told(capsys):
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    assert run_command(Command("Stops.", lambda parser: None, stop), []) == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert COMMANDS[command].description.split()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "name", "value"),
    [
        (["--ranking", "spread"], "strategy", "coverage"),
        (["--ranking", "similar"], "strategy", "nearest"),
        (["--selection", "none"], "strategy", "none"),
        (["--no-gate"], "label_check", False),
        (["--spare-diseased"], "exclude_enhancer_patients", True),
    ],
)
def test_old_flags_still_work(old, name, value):
    found = []
    command = COMMANDS["generate"]._replace(work=lambda options: found.append(options) or Report())
    assert run_command(command, ["--out", "x", *old]) == 0
    assert getattr(found[0], name) == value
