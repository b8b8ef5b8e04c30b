"""Fixtures that several files share; what they make is never written to."""

import fcntl
import os
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

# Two processes take a file each until none is left; the longest come first, so that none of them waits at the end.
LONGEST = (
    "evaluation_utility",
    "interfaces_evaluation",
    "evaluation_segmentation",
    "generate",
    "evaluation_generation",
)
LONGEST += ("export", "wcapsgan_methods", "separation", "campaigns", "cohort_prepare", "separation_benchmark")
LONGEST += ("tracking_ui", "lung_seg_methods", "evaluation_distances", "lung_seg_luna16", "bundles_shared")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files: the longest first, the others as they are."""
    names = [f"test_{name}" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))


@pytest.fixture(scope="session")
def phantom_cohort(tmp_path_factory) -> Path:
    """A phantom cohort of six patients."""
    return _made_once(tmp_path_factory, "phantom", partial(_prepare_phantom, patients=6, seed=3))


@pytest.fixture(scope="session")
def rated_cohort(tmp_path_factory) -> Path:
    """A phantom cohort of ten: seven train, two of them with nodules of all textures; one validates, two test."""
    return _made_once(tmp_path_factory, "rated", partial(_prepare_phantom, patients=10, seed=5))


@pytest.fixture(scope="session")
def half_read_cohort(tmp_path_factory) -> Path:
    """Four scans that nobody has looked at, and two that somebody has (`separation_toys.write_sources`)."""

    def make(folder: Path) -> None:
        from separation_toys import write_sources

        write_sources(folder / "source")
        _prepare(sorted((folder / "source").iterdir()), folder)

    return _made_once(tmp_path_factory, "half_read", make)


@pytest.fixture(scope="module")
def few_resamples():
    """Intervals from few draws: tests of whole tables ask what these hold, not how wide an interval is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluation.metrics.bootstrap.RESAMPLES", 20)
        yield


@pytest.fixture
def forked_workers():
    """Workers that begin with what this process has imported; spawned ones spend ten seconds each on PyTorch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lungsynth.io.running.get_context", lambda method: get_context("fork"))
        yield


def _made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A cohort that the first process to ask for it makes, for all of them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared_{name}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
    return folder / "cohort"


def _prepare_phantom(folder: Path, *, patients: int, seed: int) -> None:
    # Imported here: the process that only hands out the tests needs none of it.
    from lungsynth.cohort.phantom.files import make_phantom_cohort

    sizes = {"size_px": 96, "slices": 16, "slice_spacing_mm": 12.0}
    make_phantom_cohort(folder / "source", patients=patients, seed=seed, **sizes)
    _prepare([folder / "source"], folder)


def _prepare(sources: list[Path], folder: Path) -> None:
    from lungsynth.cohort.prepare import PrepareSettings, prepare_cohort

    prepare_cohort(sources, folder / "cohort", settings=PrepareSettings(), workers=1)
