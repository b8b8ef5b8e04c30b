"""Measures of the main path: which files of lungsynth/ work in a command, and how deep its imports go."""

import ast
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
# Leaves that many import, and that import no other module than each other: they are no step on a way.
LEAVES = ("errors", "types", "geometry", "hounsfield", "seeds", "html", "categories")
FREE = {f"lungsynth.{name}" for name in (*LEAVES, "io.atomic", "io.names", "io.running", "io.stored", "io.tables")}


def module_name(path: Path) -> str:
    """Dotted name of a file of the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """All modules of lungsynth, by dotted name."""
    return {module_name(path): path for path in sorted((ROOT / "lungsynth").rglob("*.py"))}


@cache
def imports(module: str, *, lazy: bool = True) -> frozenset[str]:
    """Modules of lungsynth that one imports, `FREE` ones and what only type checkers read apart.

    Args:
        module: dotted name.
        lazy: those that its functions import, too.
    """
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    skipped = {id(node) for block in ast.walk(tree) if _only_for_types(block) for node in ast.walk(block)}
    if not lazy:
        skipped |= {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & modules().keys() or {node.module}
    return frozenset((found & modules().keys()) - {module} - FREE)


def depth(module: str, *, lazy: bool = False) -> list[str]:
    """The longest chain of imports from a module on."""

    @cache
    def chain(name: str) -> tuple[str, ...]:
        return (name, *max((chain(other) for other in imports(name, lazy=lazy)), key=len, default=()))

    return list(chain(module))


def executed(work: Callable[[], object]) -> set[str]:
    """Modules of lungsynth of which a function runs while `work` does; module bodies and class bodies do not count."""
    seen: set[str] = set()
    package = str(ROOT / "lungsynth")

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & 0x2 and code.co_filename.startswith(package):  # CO_NEWLOCALS: a function
            seen.add(code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return {module_name(Path(file)) for file in seen}


def on_the_way(running: Iterable[str]) -> dict[str, set[str]]:
    """Of the modules that run, those that build on others which themselves build on others; and on which ones."""
    ran = set(running)
    graph: Mapping[str, set[str]] = {name: set(imports(name)) & ran for name in ran}
    return {name: inner for name, uses in graph.items() if (inner := {other for other in uses if graph[other]})}


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
