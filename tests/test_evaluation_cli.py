"""Each command of `lungsynth-eval` fills its configuration; old spellings and scripts go on working."""

import argparse
import runpy
from pathlib import Path

import pytest

from evaluation.anatomy.run import AnatomyConfig
from evaluation.cli import COMMANDS, main
from evaluation.cubes import CubesConfig
from evaluation.enhancement import EnhancementEvaluationConfig
from evaluation.generation.run import GenerationConfig
from evaluation.segmentation.run import SegmentationConfig
from evaluation.utility.run import UtilityConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "segmentation": ("evaluation.segmentation.run.evaluate_segmentation", SegmentationConfig),
    "nodules": ("evaluation.generation.run.evaluate_generation", GenerationConfig),
    "lungs": ("evaluation.generation.run.evaluate_generation", GenerationConfig),
    "slices": ("evaluation.generation.run.evaluate_generation", GenerationConfig),
    "cubes": ("evaluation.cubes.evaluate_cubes", CubesConfig),
    "enhancement": ("evaluation.enhancement.evaluate_enhancement", EnhancementEvaluationConfig),
    "utility": ("evaluation.utility.run.evaluate_utility", UtilityConfig),
}


def parse(command: str, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    COMMANDS[command].add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("flag", ["--split", "--part"])
@pytest.mark.parametrize("command", CONFIGS)
def test_options_are_those_of_the_configuration(command, flag, tmp_path, monkeypatch):
    function, config_type = CONFIGS[command]
    configs = []

    def keep(config, **others):
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(function, keep)
    assert main([command, "--cohort", str(tmp_path), "--out", str(tmp_path / "out"), flag, "validation"]) == 130
    assert isinstance(configs[0], config_type)
    assert (configs[0].cohort, configs[0].split) == (tmp_path, "validation")
    assert (configs[0].bundles / "wcapsgan_bundle").is_dir()


def test_images_and_judges_of_anatomy_are_those_of_the_configuration(tmp_path, monkeypatch):
    configs = []
    monkeypatch.setattr("evaluation.anatomy.run.evaluate_anatomy", lambda config, **_: configs.append(config) or 1 / 0)
    options = ["--cohort", "c", "--out", "o", "--images", "a.npz", "b", "--no-generator", "--split", "test"]
    with pytest.raises(ZeroDivisionError):
        main(["anatomy", *options])
    assert isinstance(configs[0], AnatomyConfig)
    assert configs[0].images == (Path("a.npz"), Path("b"))
    assert (configs[0].splits, configs[0].generator, configs[0].controls) == (("test",), False, False)


def test_an_option_of_another_command_is_refused(tmp_path):
    with pytest.raises(SystemExit):
        parse("enhancement", "--cohort", str(tmp_path), "--out", str(tmp_path), "--methods", "unet")


def test_lists_are_read():
    options = parse(
        "utility", "--cohort", "c", "--out", "o", "--patients", "10,25", "--doses", "0,0.5,3", "--families", "copied"
    )
    assert (options.patients, options.doses, options.families) == ((10, 25), (0, 0.5, 3), ("copied",))


def test_messages_name_the_flags(tmp_path, capsys):
    assert main(["compose-slices", "--cohort", str(tmp_path), "--out", str(tmp_path), "--held-out", "0"]) == 2
    assert "--count and --held-out must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["evaluate", "seam", "make_slices", "train_features", "store_weights"])
def test_scripts_keep_their_names(script, capsys):
    script_main = runpy.run_path(str(ROOT / "scripts" / f"{script}.py"))["main"]
    with pytest.raises(SystemExit) as stop:
        script_main(["--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out
