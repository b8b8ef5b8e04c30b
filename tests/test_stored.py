"""What is read back of our own files: each damage is one sentence that names the file, the entry and the way out."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lungsynth.cohort.schema import NoduleRow, SliceRow, from_mapping
from lungsynth.config import GenerateConfig, PlacementConfig, SelectionConfig
from lungsynth.errors import InputError
from lungsynth.io.atomic import write_json
from lungsynth.io.stored import (
    file_names,
    integers,
    lists,
    numbers,
    objects,
    one_of,
    optional,
    read_json,
    read_parquet,
    texts,
)

SCHEMA = objects(
    {"count": integers(1), "boxes": lists(lists(numbers(), length=2)), "kind": one_of("a", "b"), "file": file_names},
    {"note": texts(), "share": numbers(0, 1)},
)
SOUND = {"count": 3, "boxes": [[1, 2.5]], "kind": "a", "file": "images/a.nii.gz"}


def read(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_json(path, SCHEMA, what="a toy", remedy="Make it again.")


def test_sound_files_are_read_and_unknown_keys_left_alone(tmp_path):
    assert read(tmp_path / "a.json", {**SOUND, "later": {"x": 1}}) == {**SOUND, "later": {"x": 1}}
    assert read(tmp_path / "a.json", {**SOUND, "note": None}) == {**SOUND, "note": None}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", r"a\.json: cannot be read as a toy"),
        ("{", "cannot be read as a toy"),
        ("[" * 100_000, "cannot be read as a toy"),
        ("[]", r"its content should be an object, it is \[\]"),
        ({**SOUND, "count": 0}, "count should be a whole number from 1"),
        ({**SOUND, "count": True}, "count should be a whole number"),
        ({**SOUND, "count": 10**30}, "count should be a whole number"),
        ({**SOUND, "boxes": [[1, "x"]]}, r'boxes\[0\]\[1\] should be a finite number, it is "x"'),
        ({**SOUND, "boxes": [[1, math.inf]]}, r"boxes\[0\]\[1\] should be a finite number"),
        ({**SOUND, "boxes": [[1]]}, r"boxes\[0\] should be a list of 2 entries"),
        ({**SOUND, "kind": ["a"]}, "kind should be one of a, b"),
        ({**SOUND, "file": "../../x"}, "file should be the name of a file inside its folder"),
        ({**SOUND, "file": "/etc/x"}, "file should be"),
        ({**SOUND, "file": "a\0b"}, "file should be"),
        ({**SOUND, "share": 2}, "share should be a finite number from 0 to 1"),
        ({"count": 3}, "should be an object with 'boxes'"),
    ],
)
def test_each_damage_is_one_sentence(tmp_path, content, told):
    with pytest.raises(InputError, match=told) as caught:
        read(tmp_path / "a.json", content)
    assert str(caught.value).startswith(str(tmp_path / "a.json"))
    assert str(caught.value).endswith("Make it again.")
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="found no such file"):
        read_json(tmp_path / "b.json", SCHEMA, what="a toy", remedy="Make it again.")
    with pytest.raises(InputError, match=r"Is a directory"):
        read_json(tmp_path, SCHEMA, what="a toy", remedy="Make it again.")


def test_json_has_no_nan_when_written_and_null_for_one_when_read(tmp_path):
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [1, math.inf, (2.0,)]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": None, "y": [1, None, [2.0]]}
    (tmp_path / "a.json").write_text('{"x": NaN}', encoding="utf-8")
    schema = objects({"x": optional(numbers())})
    assert read_json(tmp_path / "a.json", schema, what="a toy", remedy="Make it again.") == {"x": None}


@pytest.mark.parametrize("columns", [{"b": [1]}, {"a": ["x"]}, {"a": [[1]]}, {"a": [2**40]}])
def test_tables_have_the_columns_of_their_schema(tmp_path, columns):
    schema = pa.schema([("a", pa.int32())])
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: .* a toy.*Make it again\."):
        read_parquet(tmp_path / "a.parquet", schema, what="a toy", remedy="Make it again.")


@pytest.mark.parametrize(
    ("kind", "values", "told"),
    [
        (SliceRow, {"slice_id": "../x_0001"}, "slice_id of a row or entry should be the name of a file"),
        (SliceRow, {"slice_id": "x_first"}, "a slice_id ends in an index"),
        (SliceRow, {"normal": 1}, "normal of a row or entry should be true or false"),
        (SliceRow, {"series_id": None}, "expected series_id"),
        (
            NoduleRow,
            {"texture_class": "NaN"},
            r'texture_class of a row or entry should be one of solid,.* one is "NaN"',
        ),
        (NoduleRow, {"split": "train"}, "split of a row or entry should be one of "),
        (NoduleRow, {"votes": "many"}, "votes of a row or entry should be a whole number"),
        (NoduleRow, {"diameter_mm": "x"}, "diameter_mm of a row or entry should be a finite number"),
    ],
)
def test_rows_of_a_cohort_are_of_their_types(kind, values, told):
    rows = {
        SliceRow: {"slice_id": "s_0001", "series_id": "s", "shows_nodule": False, "normal": True},
        NoduleRow: {
            **dict.fromkeys(("nodule_id", "patient_id", "series_id", "source"), "x"),
            "texture_class": "solid",
            "diameter_mm": math.nan,
        },
    }
    assert from_mapping(kind, rows[kind])
    with pytest.raises(InputError, match=told):
        from_mapping(kind, {**rows[kind], **values})


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda out: GenerateConfig(out=out, count=10**9), "`count` must be at most 20,000,000, got 1,000,000,000: "),
        (lambda out: GenerateConfig(out=out, seed=2**64), "`seed` must be at most"),
        (lambda out: PlacementConfig(groups=10**8), "`groups` must be at most 1,000,000"),
        (lambda out: SelectionConfig(candidates=10**6), "`candidates` must be at most 1,000, "),
    ],
)
def test_numbers_have_bounds_with_reasons(tmp_path, make, told):
    with pytest.raises(InputError, match=told):
        make(tmp_path)
