"""Laws of tracking: runs nest, end as their blocks end, and a store that cannot be used is refused before any work."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from lungsynth.errors import InputError
from lungsynth.tracking import open_tracker, ui_command


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory):
    return open_tracker(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


def status(tracker, run) -> str:
    return tracker.client.get_run(run.run_id).info.status


def test_a_child_names_its_parent_and_both_finish(tracker):
    with tracker.run("chain") as parent, tracker.run("plan", parent=parent, tags={"stage": "plan"}) as child:
        child.log_params({"count": 3})
        child.log_metrics({"seconds": 1.5})
        child.log_json({"a": 1}, "configs/a.json")
        child.log_image(Image.new("RGB", (4, 4)), "samples/a.png")
    run = tracker.client.get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert (run.data.params, run.data.metrics) == ({"count": "3"}, {"seconds": 1.5})
    assert {item.path for item in tracker.client.list_artifacts(child.run_id)} == {"configs", "samples"}
    assert {status(tracker, parent), status(tracker, child)} == {"FINISHED"}


@pytest.mark.parametrize(("error", "expected"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_broken_block_ends_its_run_and_its_parents(tracker, error, expected):
    with pytest.raises(error), tracker.run("chain") as parent, tracker.run("render", parent=parent) as child:
        raise error
    assert (status(tracker, parent), status(tracker, child)) == (expected, expected)


def test_a_run_left_behind_is_closed_with_its_children_and_no_other(tracker):
    parent, child, other = (tracker.run("a"), None, tracker.run("b"))
    left, untouched = parent.__enter__(), other.__enter__()
    child = tracker.run("c", parent=left)
    below = child.__enter__()
    tracker.close_stale(left.run_id)
    assert [status(tracker, run) for run in (left, below, untouched)] == ["KILLED", "KILLED", "RUNNING"]


def test_a_new_store_leaves_nothing_else_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = open_tracker()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert tracker.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "`tracking_uri` http://127.0.0.1:9: no MLflow store answers"),
        ("postgresql://127.0.0.1:9/mlflow", "127.0.0.1:9 does not answer"),
        ("file:///tmp/runs", "keep no runs in plain folders"),
        ("runs", "keep no runs in plain folders"),
        ("sqlite://mlflow.db", "needs three slashes"),
        ("carrier-pigeon://home", "no MLflow store answers"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused(uri, message):
    with pytest.raises(InputError, match=message):
        open_tracker(uri)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database at all", encoding="utf-8")
    with pytest.raises(InputError, match="is no SQLite database"):
        open_tracker(f"sqlite:///{tmp_path}/mlflow.db")


def test_the_ui_command_names_the_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ui_command("sqlite:///runs/mlflow.db")
    assert command.endswith(f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/runs/mlflow.db")
    monkeypatch.setenv("PATH", "/nowhere")
    assert ui_command("sqlite:///x.db").startswith(str(Path(sys.executable).parent))
