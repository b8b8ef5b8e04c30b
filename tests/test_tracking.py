"""Laws of tracking: runs nest, end as their blocks end, and a store that cannot be used is refused before any work."""

import sys
from pathlib import Path

import pytest
from PIL import Image
from stores import new_store

from lungsynth.errors import InputError
from lungsynth.tracking import open_tracker, ui_address, ui_command


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory):
    return open_tracker(new_store(tmp_path_factory.mktemp("store")))


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


def test_a_folder_that_is_continued_continues_its_run_and_its_stages(tracker, tmp_path):
    for seconds, batch in ((1.0, 16), (2.0, 4)):
        with tracker.resumable_run(tmp_path, "generate", tags={"command": "generate"}) as parent:
            parent.log_params({"batch_size": batch})
            with tracker.run("generate/plan", parent=parent) as child:
                total = child.previous.get("seconds", 0.0) + seconds
                child.log_metrics({"seconds": total})
    children = tracker.client.search_runs([tracker.experiment_id], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    assert [run.data.metrics for run in children] == [{"seconds": 3.0}]
    own = tracker.client.get_run(parent.run_id)
    assert own.data.params == {"batch_size": "16"}
    assert own.info.status == "FINISHED"


def test_a_folder_whose_run_was_killed_or_deleted_goes_on(tracker, tmp_path):
    killed = tracker.resumable_run(tmp_path, "generate")
    first = killed.__enter__()
    with tracker.resumable_run(tmp_path, "generate") as again:
        assert again.run_id == first.run_id
    tracker.client.delete_run(first.run_id)
    with tracker.resumable_run(tmp_path, "generate") as fresh:
        assert fresh.run_id != first.run_id


def test_data_sets_and_pictures_stand_with_a_run(tracker):
    with tracker.run("inputs") as run:
        run.log_dataset("cohort", digest="ab" * 32, context="real nodules", about={"collections": ["TOY"]})
        run.show_image(Image.new("RGB", (4, 4)), "contact_sheet")
        run.describe("Some words.")
    found = tracker.client.get_run(run.run_id)
    (entry,) = found.inputs.dataset_inputs
    assert (entry.dataset.name, len(entry.dataset.digest)) == ("cohort", 36)
    assert found.data.tags["mlflow.note.content"] == "Some words."
    assert [item.path for item in tracker.client.list_artifacts(run.run_id)] == ["images"]


def test_the_address_of_a_run_is_on_the_server_that_the_ui_command_starts(tracker):
    with tracker.run("seen") as run:
        page = tracker.page(run)
    assert page.startswith(f"#/experiments/{tracker.experiment_id}/runs/{run.run_id}?")
    assert ui_address("sqlite:///runs/mlflow.db", page) == f"http://127.0.0.1:5000/{page}"
    assert ui_address("http://lab:8080/", page) == f"http://lab:8080/{page}"


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
