"""MLflow's page of a run, in a browser: what a user sees who opens the address that a command prints."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
from PIL import Image
from stores import new_store

from lungsynth.tracking import open_tracker, ui_address

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_START_S, _RENDER_MS = 180, 60_000
_SHOWN = ("generate demo", "64 synthetic slices", "distinct_nodules", "cohort", "demo/plan")


@pytest.fixture(scope="module")
def browser() -> str:
    """A headless browser, or no test."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser to open the page in, none of {', '.join(BROWSERS)}")
    return found


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory) -> Iterator[str]:
    """The page of a run on a server of its own."""
    uri = new_store(tmp_path_factory.mktemp("store"))
    tracker = open_tracker(uri)
    with tracker.run("generate demo", tags={"command": "generate"}) as parent:
        parent.describe("64 synthetic slices with 70 nodules.")
        parent.log_metrics({"distinct_nodules": 70})
        parent.log_dataset("cohort", digest="ab" * 16, context="real nodules", about={"collections": ["TOY"]})
        parent.show_image(Image.new("RGB", (8, 8)), "contact_sheet")
        with tracker.run("demo/plan", parent=parent):
            pass
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", server.rpartition(":")[2]]
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        [*command, "--workers", "1"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(f"{server}/health", process)
        address = ui_address(server, tracker.page(parent))
        yield _rendered(browser, address)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _rendered(browser: str, address: str) -> str:
    """The page once it shows the run; as it is at the end of the time where it never does."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--virtual-time-budget={_RENDER_MS}"]
    deadline = time.monotonic() + _START_S
    page = ""
    while _SHOWN[-1] not in page and time.monotonic() < deadline:  # a busy machine spends the budget without a page
        done = subprocess.run([browser, *options, address], capture_output=True, timeout=_START_S, check=True)
        page = done.stdout.decode("utf-8")
    return page


def _wait_for(address: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"{address} does not answer")


def test_the_printed_address_leads_to_the_run_with_what_matters(page):
    for shown in _SHOWN:
        assert shown in page, shown
    assert "Model training" in page
