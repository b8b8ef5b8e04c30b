"""The sizes and docstrings that keep the code readable in one sitting."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p for folder in ("lungsynth", "bundles", "scripts") for p in (ROOT / folder).rglob("*.py"))
MAX_MODULE_LINES = 250
MAX_FUNCTION_LINES = 40  # without its signature's and docstring's lines


def nodes(path: Path, *kinds: type[ast.AST]) -> list[ast.AST]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)]


def body_lines(function: ast.FunctionDef) -> int:
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return function.body[-1].end_lineno - first.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not path.read_text(encoding="utf-8").strip() or ast.get_docstring(tree), "a module says its concept first"
    long = [f.name for f in nodes(path, ast.FunctionDef) if body_lines(f) > MAX_FUNCTION_LINES]
    assert not long
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} is public and says nothing"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_input_is_never_checked_by_assert(path):
    assert not nodes(path, ast.Assert)
