"""Each command of scripts/evaluate.py fills its settings: an option that nobody takes is refused."""

import runpy
from pathlib import Path

import pytest

from evaluation.enhancement import EnhancementSettings
from evaluation.generation.run import GenerationSettings
from evaluation.segmentation.run import SegmentationSettings
from evaluation.utility.settings import UtilitySettings

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "segmentation": SegmentationSettings,
    "nodules": GenerationSettings,
    "lungs": GenerationSettings,
    "slices": GenerationSettings,
    "enhancement": EnhancementSettings,
    "utility": UtilitySettings,
}


@pytest.mark.parametrize(("command", "settings"), SETTINGS.items(), ids=SETTINGS)
def test_options_are_those_of_the_settings(command, settings, tmp_path):
    parse = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))["parse_args"]
    options = vars(parse([command, "--cohort", str(tmp_path), "--out", str(tmp_path / "out")]))
    given = {name: value for name, value in options.items() if name not in ("judge", "command", "tracking_uri")}
    filled = settings(**given)
    assert filled.cohort == tmp_path


def test_an_option_of_another_command_is_refused(tmp_path):
    parse = runpy.run_path(str(ROOT / "scripts" / "evaluate.py"))["parse_args"]
    with pytest.raises(SystemExit):
        parse(["enhancement", "--cohort", str(tmp_path), "--out", str(tmp_path), "--methods", "unet"])
