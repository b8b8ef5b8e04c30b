"""Laws of files that are whole or absent, and of folders that belong to one run."""

import json

import pytest

from lungsynth.errors import InputError
from lungsynth.io.atomic import remove_temporary, replacing, write_bytes, write_json, write_text
from lungsynth.run_folder import RunFolder


def write_half(path):
    with replacing(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with pytest.raises(RuntimeError):
        write_half(path)
    assert list(path.parent.iterdir()) == []
    write_text(path, "whole\n")
    assert path.read_text(encoding="utf-8") == "whole\n"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError):
        write_half(path)
    assert path.read_bytes() == b"old"


def test_json_is_the_same_text_each_time(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]}, indent=2, sort_keys=True)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": [\n    2\n  ],\n  "b": 1\n}\n'
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]}, indent=None)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"b":1,"a":[2]}\n'


@pytest.mark.parametrize("name", [".image.nii.gz.0123.tmp", ".image.nii.gz.0123.part"])
def test_leftovers_of_killed_processes_go_and_nothing_else(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "image.part").touch()
    (tmp_path / ".hidden").touch()
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "image.part"]
    remove_temporary(tmp_path / "missing")


def test_leftovers_below_a_folder(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".a.1.tmp").touch()
    remove_temporary(tmp_path)
    assert (tmp_path / "below" / ".a.1.tmp").exists()
    remove_temporary(tmp_path, recursive=True)
    assert not (tmp_path / "below" / ".a.1.tmp").exists()


def test_a_free_folder_is_claimed_once_and_then_continued(tmp_path):
    folder = RunFolder(path=tmp_path / "run", identity={"seed": 1, "sizes": (1, 2)})
    assert not folder.check()
    assert not (tmp_path / "run").exists(), "a look writes nothing"
    assert not folder.claim()
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8")) == {
        "format": 2,
        "seed": 1,
        "sizes": [1, 2],
    }
    assert folder.claim()


def test_another_run_is_refused_with_what_differs(tmp_path):
    RunFolder(path=tmp_path, identity={"seed": 1, "count": 4}).claim()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"another run \(seed is 1 there and 2 here\)"):
        RunFolder(path=tmp_path, identity={"seed": 2, "count": 4}).claim()
    assert (tmp_path / "run.json").read_bytes() == before


def test_two_kinds_of_runs_may_share_a_folder(tmp_path):
    RunFolder(path=tmp_path, identity={"seed": 1}).claim()
    with pytest.raises(InputError, match=r"other files and no export\.json"):
        RunFolder(path=tmp_path, identity={"files": "png"}, file="export.json").claim()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "cannot be read as the settings of a run"),
        ("[]", r"run\.json: expected the settings of a run, but its content should be an object"),
    ],
)
def test_a_damaged_identity_is_refused(tmp_path, content, text):
    (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=text):
        RunFolder(path=tmp_path, identity={}).claim()


def test_files_and_foreign_folders_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="got a file"):
        RunFolder(path=tmp_path / "file", identity={}).claim()
    with pytest.raises(InputError, match=r"other files and no run\.json"):
        RunFolder(path=tmp_path, identity={}).claim()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_hidden_file_does_not_make_a_folder_foreign(tmp_path):
    (tmp_path / ".DS_Store").touch()
    assert not RunFolder(path=tmp_path, identity={}).claim()


def test_a_cohort_of_format_1_is_continued_in_the_words_of_today(tmp_path):
    old = {"format": 1, "settings": {"ranking": "spread", "gate": True, "sources": ["a"]}, "places": "ab"}
    write_json(tmp_path / ".parts" / "identity.json", old)
    (tmp_path / "series.csv").touch()
    now = {"selection": "coverage", "label_check": True, "sources": ["a"], "source_locations": "ab"}
    assert RunFolder(path=tmp_path, identity=now).claim()
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"format": 2, **now}
    with pytest.raises(InputError, match=r"selection is \"coverage\" there and \"nearest\" here"):
        RunFolder(path=tmp_path, identity={**now, "selection": "nearest"}).claim()


def test_a_run_of_format_1_is_continued(tmp_path):
    write_json(tmp_path / "run.json", {"format": 1, "spare_diseased": False, "settings": {"a": 1}})
    assert RunFolder(path=tmp_path, identity={"exclude_enhancer_patients": False, "settings": {"a": 1}}).check()
