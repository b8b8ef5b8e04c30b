"""Writes the generated tables of the documentation: columns of files, keys of the bundles, options of commands.

python docs/tools/generate_reference.py [--check]

A generated table stands between `<!-- generated: NAME -->` and `<!-- end -->`. NAME says where its rows come from:

- `columns MODULE:NAME`: a dataclass whose fields' metadata say what they mean, or a pyarrow schema, whose meanings
  stand in `docs/tools/columns.json`.
- `keys CONFIG`: the settings of a bundle's config. Meanings come from the config's `_desc_`, else from the table as it
  stands, so that a new key shows up with an empty meaning, which tests/test_docs.py refuses. An expression that
  refers to a component and has no meaning is no setting.
- `groups CONFIG`: the components of a config that have a `_desc_`, and the values that stand in them.
- `overlays CONFIG`: what the other configs of the bundle change.
- `command NAME`: the options of a command, from its parser.
"""

import argparse
import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/**/*.md", "bundles/*/docs/*.md")
_BLOCK = re.compile(r"(<!-- generated: (?P<name>[^\n]+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
_NOT_SETTINGS = ("imports", "initialize", "run", "finalize", "_desc_", "bundle_root", "package_path")
Row = tuple[str, ...]


def main() -> int:
    """Rewrites the pages, or with `--check` names those that are out of date; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when a page is out of date")
    check = parser.parse_args().check
    stale = {path: text for path in pages() if (text := generated(path)) != path.read_text(encoding="utf-8")}
    for path, text in stale.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}\n")
    return int(check and bool(stale))


def pages() -> list[Path]:
    """All pages that may have generated tables."""
    return sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})


def generated(path: Path) -> str:
    """The text of a page with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        kind, _, of = match["name"].partition(" ")
        return f"{match[1]}{_MAKERS[kind](path, of, match['body'])}\n{match[4]}"

    return _BLOCK.sub(block, path.read_text(encoding="utf-8"))


def table(header: Row, rows: Iterable[Row]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def columns(_path: Path, of: str, _body: str) -> str:
    """The columns of a table or keys of a data list, of a dataclass or a pyarrow schema."""
    module, _, name = of.partition(":")
    schema = getattr(importlib.import_module(module), name)
    if dataclasses.is_dataclass(schema):
        rows = [_field(item) for item in dataclasses.fields(schema) if item.metadata["column"]]
    else:
        meanings = json.loads((ROOT / "docs/tools/columns.json").read_text(encoding="utf-8"))[of]
        rows = [(f"`{item.name}`", _arrow_name(item.type), meanings.get(item.name, "")) for item in schema]
    return table(("column", "type", "content"), rows)


def _field(item: dataclasses.Field[Any]) -> Row:
    plain = isinstance(item.type, type) and not hasattr(item.type, "__args__")
    kind = item.type.__name__ if plain else str(item.type)
    kind = "str" if plain and issubclass(item.type, Enum) else kind
    unit = f" ({item.metadata['unit']})" if item.metadata["unit"] else ""
    return f"`{item.name}`", kind.replace(" | None", "") + unit, item.metadata["description"]


def _arrow_name(kind: Any) -> str:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_list(kind):
        return f"list of {kind.value_type}"
    return str(kind)


def settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a config: its top-level entries that are no component and no list of steps."""
    for key, value in config.items():
        if key not in _NOT_SETTINGS and not isinstance(value, dict) and not _of_components(value):
            yield key, value


def keys(path: Path, of: str, body: str) -> str:
    """The settings of a config: key, default, meaning."""
    config = _config(path, of)
    described = config.get("_desc_", {})
    described = described if isinstance(described, dict) else {}
    old = {key: meaning for key, _, meaning in _rows(body)}
    meanings = {key: described.get(key) or old.get(f"`{key}`", "") for key, _ in settings(config)}
    listed = [(key, value) for key, value in settings(config) if meanings[key] or not str(value).startswith("$@")]
    rows = [(f"`{key}`", shown(value), meanings[key]) for key, value in listed]
    return table(("key", "default", "meaning"), rows)


def groups(path: Path, of: str, _body: str) -> str:
    """The components of a config that have a description: id, meaning, values."""
    rows = []
    for name, component in _components(_config(path, of)):
        values = ((key, value) for key, value in component.items() if not key.startswith("_") and _is_literal(value))
        listed = ", ".join(f"`{key}` {shown(value)}" for key, value in values)
        rows.append((f"`{name}`", component["_desc_"], listed))
    return table(("group", "meaning", "values"), rows)


def _components(node: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if name and isinstance(node.get("_desc_"), str):
            yield name, node
        for key, value in node.items():
            yield from _components(value, f"{name}#{key}".lstrip("#"))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _components(value, f"{name}#{index}")


def _is_literal(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_literal(item) for item in value)
    return not isinstance(value, dict) and not (isinstance(value, str) and value[:1] in ("@", "$"))


def overlays(path: Path, of: str, body: str) -> str:
    """What the other configs that begin with the same word change."""
    base, old = of.removesuffix(".json"), {name: meaning for name, meaning, _ in _rows(body)}
    rows = []
    for overlay in sorted((path.parents[1] / "configs").glob(f"{base}_*.json")):
        content = json.loads(overlay.read_text(encoding="utf-8"))
        stated = content.get("_desc_")
        meaning = stated if isinstance(stated, str) else old.get(f"`{overlay.name}`", "")
        values = ", ".join(f"`{key}` {shown(value)}" for key, value in settings(content))
        rows.append((f"`{overlay.name}`", meaning, values))
    return table(("config", "for", "changes"), rows)


def shown(value: Any) -> str:
    """A default as a page shows it; expressions are computed when a config is read."""
    if isinstance(value, str) and value.startswith("$"):
        return "computed"
    return "none" if value is None else f"`{json.dumps(value)}`"


def command(_path: Path, of: str, _body: str) -> str:
    """The options of a command of `lungsynth`."""
    from lungsynth.cli import COMMANDS

    parser = argparse.ArgumentParser(prog=f"lungsynth {of}")
    COMMANDS[of].add_arguments(parser)
    hidden = argparse._HelpAction
    actions = [a for a in parser._actions if not isinstance(a, hidden) and a.help != argparse.SUPPRESS]
    return table(("option", "meaning"), [(_option(action), _help(parser, action)) for action in actions])


def _option(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    value = " ".join(value) if isinstance(value, tuple) else value
    if action.choices:
        value = "|".join(map(str, action.choices))
    name = action.option_strings[0] if action.option_strings else ""
    return f"`{' '.join(part for part in (name, value) if part)}`"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return f"{text} **(required)**" if action.required and action.option_strings else text


def _config(path: Path, name: str) -> dict[str, Any]:
    return json.loads((path.parents[1] / "configs" / name).read_text(encoding="utf-8"))


def _of_components(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _rows(body: str) -> Iterator[Row]:
    for line in body.splitlines()[2:]:
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3:
            yield tuple(cells)


_MAKERS: dict[str, Callable[[Path, str, str], str]] = {
    "columns": columns,
    "keys": keys,
    "groups": groups,
    "overlays": overlays,
    "command": command,
}

if __name__ == "__main__":
    sys.exit(main())
