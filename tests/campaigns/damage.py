"""Ways to damage a file, each drawn from a seed: of its bytes, and of what its format means."""

import json
import math
import random
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom


class Chance(random.Random):
    """Random numbers, and a folder that nothing may be written to."""

    outside = Path("/nonexistent")

    def text(self) -> str:
        """A text that no file should hold."""
        return self.choice(_TEXTS).replace(OUTSIDE, str(self.outside))

    def value(self) -> Any:
        """A value of JSON that may not fit."""
        value = self.choice(_VALUES)
        return value.replace(OUTSIDE, str(self.outside)) if isinstance(value, str) else value


Damage = Callable[[Path, Chance], str]
"""Changes a file in place and says how."""

OUTSIDE = "@outside@"  # in texts: the folder of `Chance`
_TEXTS = (
    "",
    " ",
    "..",
    "../../../escaped",
    f"{OUTSIDE}/escaped",
    "a/b",
    "x\ny",
    "\0",
    "é" * 300,
    "%s%s%n",
    "NaN",
    "1e999",
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1e-6, 1e9, 1e308, -1e308, math.inf, math.nan, 2**31, 2**63, 10**30, [], {}, [[]],
    [None], {"a": 1}, *_TEXTS,
)  # fmt: skip


def damage(path: Path, rng: Chance) -> str:
    """Damages a file in a way that suits it.

    Args:
        path: the file.
        rng: decides how.

    Returns:
        What was done.
    """
    own = _OF_FORMAT.get("".join(path.suffixes[-2:]), _OF_FORMAT.get(path.suffix, ()))
    ways = _OF_BYTES if not own or rng.random() < 0.35 else own
    way = rng.choice(ways)
    try:
        told = way(path, rng)
    except Exception as error:  # a way that does not suit this file: its bytes always do
        told = f"{rng.choice(_OF_BYTES)(path, rng)} (not {way.__name__}: {type(error).__name__})"
    return f"{path.name}: {told}"


# Of bytes


def truncated(path: Path, rng: Chance) -> str:
    content = path.read_bytes()
    kept = rng.randrange(max(1, len(content)))
    path.write_bytes(content[:kept])
    return f"cut to {kept} bytes"


def flipped(path: Path, rng: Chance) -> str:
    content, count = bytearray(path.read_bytes()), rng.choice((1, 1, 2, 8, 64))
    for _ in range(count if content else 0):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"{count} bits flipped"


def blanked(path: Path, rng: Chance) -> str:
    content = bytearray(path.read_bytes())
    begin, size = rng.randrange(max(1, len(content))), rng.choice((1, 16, 256, 4096))
    content[begin : begin + size] = rng.choice((b"\0", b"\xff", b" ")) * min(size, len(content) - begin)
    path.write_bytes(content)
    return f"{size} bytes blank from {begin}"


def spliced(path: Path, rng: Chance) -> str:
    content, noise = path.read_bytes(), rng.randbytes(rng.choice((1, 7, 100)))
    begin = rng.randrange(max(1, len(content)))
    path.write_bytes(content[:begin] + noise + content[begin:])
    return f"{len(noise)} bytes put in at {begin}"


def replaced(path: Path, rng: Chance) -> str:
    path.write_bytes(
        rng.choice((b"", b"\0" * 1000, b"{}", b"[]", b"null", b"\x80\x04.", rng.randbytes(300), b"a,b\n1,2\n"))
    )
    return "other content"


def nested(path: Path, rng: Chance) -> str:
    path.write_bytes(rng.choice((b"[", b'{"a":')) * 100_000)
    return "nested 100,000 deep"


_OF_BYTES: Sequence[Damage] = (truncated, flipped, blanked, spliced, replaced)


# Of formats


def json_changed(path: Path, rng: Chance) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    places = list(_places(content))
    holder, key = rng.choice(places)
    action = rng.choice(("value", "value", "value", "removed", "renamed"))
    if action == "value" or isinstance(holder, list):
        holder[key] = rng.value()
    elif action == "removed":
        del holder[key]
    else:
        holder[f"{key}_"] = holder.pop(key)
    path.write_text(json.dumps(content), encoding="utf-8")
    return f"{action} at {str(key)[:30]}"


def _places(content: Any) -> Any:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from _places(value)


def csv_changed(path: Path, rng: Chance) -> str:
    lines = path.read_text(encoding="utf-8").split("\n")
    row = rng.randrange(len(lines))
    cells = lines[row].split(",")
    column = rng.randrange(len(cells))
    cells[column] = str(rng.value())
    lines[row] = ",".join(cells if rng.random() < 0.8 else cells[:column])
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"cell {row}:{column}"


def parquet_changed(path: Path, rng: Chance) -> str:
    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    place, kept = table.column_names.index(name), table.schema.metadata
    values = table[name].to_pylist()
    action = rng.choice(("dropped", "typed", "value", "value", "value", "nulls", "metadata"))
    if action == "dropped":
        table = table.drop_columns([name])
    elif action == "metadata":
        text = kept.get(b"lungsynth.plan", b"{}") if kept else b"{}"
        begin = rng.randrange(max(1, len(text)))
        kept = {
            b"lungsynth.plan": rng.choice((b"{}", b"[]", text[:begin], text.replace(b"1", b"-7"), b'{"identity": 3}'))
        }
    elif action == "typed":
        table = table.set_column(place, name, pa.array([str(value) for value in values]))
    else:
        kind = table.schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        values[rng.randrange(len(values))] = None if action == "nulls" else _like(values, rng)
        table = table.set_column(place, name, pa.array(values, kind))
    pq.write_table(table.replace_schema_metadata(kept), path)
    return f"{action}: {name}"


def _like(values: list[Any], rng: Chance) -> Any:
    """A bad value of the type of a column."""
    sample = next((value for value in values if value is not None), "")
    if isinstance(sample, bool):
        return not sample
    if isinstance(sample, int):
        return rng.choice((-1, 0, 2**31 - 1, 10**6))
    if isinstance(sample, float):
        return rng.choice((math.nan, math.inf, -1.0, 0.0, 1e-6, 1e30))
    if isinstance(sample, list):
        bad = [rng.choice((math.nan, -math.inf, 1e-6, 0.0, 1e30)) for _ in sample]
        return rng.choice((bad, [], sample * 2, sample[:-1]))
    changed = re.sub(r"\d", "7", sample, count=3)
    return rng.choice((rng.text(), rng.text(), changed, sample[:-3]))


def array_changed(path: Path, rng: Chance) -> str:
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = dict(file)
        name = rng.choice(sorted(arrays))
        arrays[name] = _other_array(arrays[name], rng)
        if rng.random() < 0.2:
            del arrays[name]
        np.savez_compressed(path, **arrays)
        return f"array {name}"
    np.save(path, _other_array(np.load(path), rng))
    return "array"


def _other_array(array: np.ndarray, rng: Chance) -> np.ndarray:
    ways = (
        lambda a: a.astype(np.float64) * np.nan,
        lambda a: a[..., :-1],
        lambda a: a[None],
        lambda a: np.zeros(0, a.dtype),
        lambda a: a.astype("U8"),
        lambda a: np.zeros_like(a),
        lambda a: np.full_like(a, 32000) if a.dtype == np.int16 else a * 2,
        lambda a: a.reshape(-1),
    )
    return np.asarray(rng.choice(ways)(array))


def nifti_changed(path: Path, rng: Chance) -> str:
    image = nib.load(path)
    data, affine = np.asanyarray(image.dataobj), np.array(image.affine)
    action = rng.choice(("affine", "slope", "shape", "nan", "empty", "scaled"))
    header = image.header.copy()
    if action == "affine":
        affine[rng.randrange(3), rng.randrange(4)] = rng.choice((0, np.nan, np.inf, 1e9, 1e-9, -1))
        nib.save(nib.Nifti1Image(data, affine), path)
    elif action == "slope":
        content = nib.Nifti1Image(data, affine, header)
        content.header["scl_slope"], content.header["scl_inter"] = rng.choice(
            ((np.nan, 0), (-1, 0), (1e9, 0), (1, np.inf))
        )
        path.write_bytes(_packed(path, content.to_bytes()))
    elif action == "shape":
        content = bytearray(nib.Nifti1Image(data, affine, header).to_bytes())
        content[40 + 2 * rng.randrange(8) : 42 + 2 * rng.randrange(8)] = rng.randbytes(2)
        path.write_bytes(_packed(path, bytes(content)))
    else:
        changed = {"nan": data * np.nan, "empty": np.zeros_like(data), "scaled": data / 4096}[action]
        nib.save(nib.Nifti1Image(changed.astype(np.float32), affine), path)
    return f"nifti {action}"


def _packed(path: Path, content: bytes) -> bytes:
    import gzip

    return gzip.compress(content) if path.suffix == ".gz" else content


def dicom_changed(path: Path, rng: Chance) -> str:
    dataset = pydicom.dcmread(path)
    names = [element.keyword for element in dataset if element.keyword and element.keyword != "PixelData"]
    name = rng.choice(names)
    if rng.random() < 0.25:
        del dataset[name]
    else:
        element = dataset[name]
        pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
        numbers = {"US": 0, "DS": rng.choice(("nan", "-1", "0", "1e9", "x")), "IS": rng.choice(("-1", "x", "9" * 12))}
        element._value = numbers.get(element.VR, rng.text())
    dataset.save_as(path)
    return f"dicom {name}"


def header_changed(path: Path, rng: Chance) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    row = rng.randrange(len(lines))
    key, _, value = lines[row].partition("=")
    new = rng.choice(
        ("", "-1", "99", "LIST", "%s%s%n", "nan", "1e9 1e9 1e9", "../../x.raw", "MET_FLOAT", value + " 7", "0 0 0")
    )
    lines[row] = f"{key}= {new}"
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"header {key.strip()} = {new}"


def xml_changed(path: Path, rng: Chance) -> str:
    text = path.read_text(encoding="utf-8")
    places = [match.span(1) for match in re.finditer(r">([^<>]+)<", text)]
    begin, end = rng.choice(places)
    new = rng.choice(("", "x", "-1", "1e9", "&undefined;", "NaN", "9" * 400, "../../x"))
    path.write_text(text[:begin] + new + text[end:], encoding="utf-8")
    return f"xml text {new[:12]!r}"


def archive_changed(path: Path, rng: Chance) -> str:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(rng.choice(("../escaped.txt", "/escaped.txt", "a/../../escaped.txt", "x" * 300)), b"text")
    return "member with a strange name"


class Payload:
    """What a pickle runs when it is opened."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (Path(self.folder) / "code_was_run",))


def weights_changed(path: Path, rng: Chance) -> str:
    import torch

    state = torch.load(path, weights_only=True)
    action = rng.choice(("code", "nan", "shape", "list", "names", "types"))
    name = rng.choice(sorted(state))
    content: Any = {
        "code": {name: Payload(str(rng.outside))},
        "nan": {**state, name: state[name] * math.nan},
        "shape": {**state, name: state[name][None]},
        "list": list(state.values()),
        "names": {f"{key}_": value for key, value in state.items()},
        "types": {**state, name: "text"},
    }[action]
    torch.save(content, path)
    return f"weights {action}"


_OF_FORMAT: dict[str, Sequence[Damage]] = {
    ".json": (json_changed, json_changed, json_changed, nested),
    ".csv": (csv_changed,),
    ".parquet": (parquet_changed,),
    ".npz": (array_changed,),
    ".npy": (array_changed,),
    ".nii.gz": (nifti_changed,),
    ".nii": (nifti_changed,),
    ".dcm": (dicom_changed,),
    ".mhd": (header_changed,),
    ".xml": (xml_changed,),
    ".zip": (archive_changed,),
    ".pt": (weights_changed,),
}
