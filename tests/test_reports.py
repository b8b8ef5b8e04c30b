"""Laws of pages, cards and dry runs: they stand alone, name no patient, and say what a run makes before it makes it."""

import argparse
import re
from pathlib import Path

from PIL import Image

from lungsynth import html
from lungsynth.cohort.reader import Cohort
from lungsynth.commands.command import repeat_command
from lungsynth.commands.samples import GENERATE, generate_config
from lungsynth.config import GenerateConfig, PlacementConfig
from lungsynth.plan import estimate
from lungsynth.run_report import licence_text, write_card


def without_pictures(text: str) -> str:
    return re.sub('base64,[^"]+', "", text)


def test_what_comes_from_outside_is_escaped():
    text = html.page("<a>", "<b>", [html.section("<c>", html.table(("<d>",), [("<e>",)]), html.code("<f>"))])
    for name in "abcdef":
        assert f"&lt;{name}&gt;" in text


def test_bars_are_shares_and_empty_series_are_left_out():
    chart = html.bars("size", ["small", "large"], {"synthetic": [1, 3], "real": [0, 0]})
    assert re.findall(r'font-size="9">(\d+)<', chart) == ["25", "75"]
    assert "real" not in chart
    heights = [float(height) for height in re.findall(r'width="13" height="([\d.]+)"', chart)]
    assert heights[1] == 3 * heights[0] or abs(heights[1] - 3 * heights[0]) < 0.2


def test_pictures_travel_inside_the_page():
    text = html.pictures([(Image.new("L", (3, 2)), 'a "caption"')])
    assert 'src="data:image/png;base64,' in text
    assert "width:3px" in text
    assert "a &quot;caption&quot;" in text


def test_the_page_of_a_cohort_shows_it_and_names_no_patient(phantom_cohort):
    text = without_pictures((phantom_cohort / "report.html").read_text(encoding="utf-8"))
    for heading in ("Split by patient", "Sources", "Nodules", "Normal lungs", "Distributions", "Data set card"):
        assert f"<h2>{heading}</h2>" in text
    patients = {row.patient_id for row in Cohort.open(phantom_cohort).series}
    assert f"A cohort of {len(patients)} patients" in text
    assert not [patient for patient in patients if patient in text]
    assert "lungsynth prepare SOURCE ... --out COHORT" in text


def test_a_card_states_the_licence_and_whose_terms_apply(tmp_path):
    assert "No voxel of a patient" in licence_text(real_voxels=False)
    text = write_card(
        tmp_path, samples=5, real_voxels=True, sources=[{"name": "TOY", "licence": "CC BY 3.0"}]
    ).read_text(encoding="utf-8")
    assert "CC BY 4.0" in text
    assert "TOY: CC BY 3.0" in text
    assert "Not for diagnosis" in text


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    small, large = (estimate(GenerateConfig(out=tmp_path / "out", count=count), rendered=True) for count in (10, 1000))
    planned = estimate(
        GenerateConfig(out=tmp_path / "out", count=10, placement=PlacementConfig.at_scale(lungs=4, groups=6)),
        rendered=False,
    )
    assert (small.samples, large.samples, planned.samples) == (10, 1000, 30)
    assert small.seconds < large.seconds
    assert small.megabytes < large.megabytes
    assert "Nothing was written." in large.lines()
    assert not list(tmp_path.iterdir())


def test_a_command_is_repeated_without_defaults_and_paths():
    parser = argparse.ArgumentParser()
    GENERATE.add_arguments(parser)
    words = ["--out", "/home/me/out", "--cohort", "/data/x", "--count", "5", "--no-enhance", "--batch-size", "4"]
    options = parser.parse_args(words)
    command = repeat_command("generate", GENERATE.add_arguments, options)
    assert command == "lungsynth generate --out OUT --count 5 --cohort COHORT --no-enhance"
    again = generate_config(parser.parse_args(command.split()[2:]))
    assert (again.count, again.cohort, again.enhancement.enabled) == (5, Path("COHORT"), False)
