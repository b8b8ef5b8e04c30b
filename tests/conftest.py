"""Fixtures that several files share; what they make is never written to."""

from pathlib import Path

import pytest

from lungsynth.cohort.phantom.files import make_phantom_cohort
from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort


@pytest.fixture(scope="session")
def phantom_cohort(tmp_path_factory) -> Path:
    """A phantom cohort of six patients."""
    folder = tmp_path_factory.mktemp("phantom")
    make_phantom_cohort(folder / "source", patients=6, seed=3, size_px=96, slices=16, slice_spacing_mm=12.0)
    prepare_cohort([folder / "source"], folder / "cohort", settings=PrepareSettings(), workers=1)
    return folder / "cohort"


@pytest.fixture(scope="session")
def rated_cohort(tmp_path_factory) -> Path:
    """A phantom cohort of ten: seven train, two of them with nodules of all textures; one validates, two test."""
    folder = tmp_path_factory.mktemp("rated")
    make_phantom_cohort(folder / "source", patients=10, seed=5, size_px=96, slices=16, slice_spacing_mm=12.0)
    prepare_cohort([folder / "source"], folder / "cohort", settings=PrepareSettings(), workers=1)
    return folder / "cohort"
