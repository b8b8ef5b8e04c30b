"""The sizes, docstrings and directions of import that keep the code readable in one sitting."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    p for folder in ("lungsynth", "evaluation", "bundles", "scripts") for p in (ROOT / folder).rglob("*.py")
)
# Which packages come later and are never imported. Similarity and enhancement do not know each other.
LATER = {
    "io": ("ct", "cohort", "placement", "compositing", "data", "similarity", "enhancement", "pseudo_labels", "export"),
    "ct": ("cohort", "placement", "compositing", "data", "similarity", "enhancement", "pseudo_labels", "export"),
    "cohort": ("placement", "compositing", "data", "similarity", "enhancement", "pseudo_labels", "export"),
    "placement": ("compositing", "data", "similarity", "enhancement", "pseudo_labels", "export"),
    "compositing": ("data", "similarity", "enhancement", "pseudo_labels", "export"),
    "similarity": ("data", "enhancement", "pseudo_labels", "export"),
    "enhancement": ("data", "similarity", "pseudo_labels", "export"),
    "data": ("similarity", "pseudo_labels", "export"),
    "export": ("data", "similarity", "pseudo_labels"),
}
LATER = {package: (*later, "trial") for package, later in LATER.items()}
MAX_FUNCTION_LINES = 40  # without its signature's and docstring's lines


def nodes(path: Path, *kinds: type[ast.AST]) -> list[ast.AST]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)]


def body_lines(function: ast.FunctionDef) -> int:
    first = function.body[1] if ast.get_docstring(function) and len(function.body) > 1 else function.body[0]
    return function.body[-1].end_lineno - first.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_module(path):
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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_text_is_utf_8_in_any_locale(path):
    """A machine whose locale is ASCII reads and writes the same files."""
    for call in nodes(path, ast.Call):
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
            assert "encoding" in {keyword.arg for keyword in call.keywords}, f"line {call.lineno}"


@pytest.mark.parametrize(
    "package", sorted(p.name for p in (ROOT / "lungsynth").iterdir() if p.is_dir() and p.name in LATER)
)
def test_imports_run_one_way(package):
    forbidden = ("evaluation", *(f"lungsynth.{name}" for name in LATER[package]))
    for path in (ROOT / "lungsynth" / package).rglob("*.py"):
        names = [alias.name for node in nodes(path, ast.Import) for alias in node.names]
        names += [node.module or "" for node in nodes(path, ast.ImportFrom)]
        assert not [name for name in names if name.startswith(forbidden)], path
