"""The documentation: links resolve, generated tables are up to date, the map of folders equals the folders."""

import importlib.util
import itertools
import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from lungsynth.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs/tools/generate_reference.py")
reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reference)
PAGES = [path.relative_to(ROOT) for path in reference.pages()] + [Path("CHANGELOG.md")]
CARDS = sorted(path.relative_to(ROOT) for path in ROOT.glob("bundles/*/docs/README.md"))
CODE = ("lungsynth", "evaluation", "bundles", "scripts", "benchmarks")
SOURCES = [path for folder in CODE for path in (ROOT / folder).rglob("*.py")]
# of MONAI, torchrun and tables, not keys of a config
TOOL_OPTIONS = {"config_file", "bundle_root", "tracking", "run_name", "tracking_uri", "key", "group#key"}
ZOO_HEADINGS = [
    "Authors",
    "Tags",
    "Model Description",
    "Data",
    "Preprocessing",
    "Performance",
    "Additional Usage Steps",
    "System Configuration",
    "Limitations",
    "Citation Info",
    "References",
]


def _prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def _anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", _prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_resolve(page) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if not link.startswith(("http://", "https://")):
            name, _, anchor = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in _anchors(target), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_tables_are_whole(page) -> None:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    for above, line in itertools.pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert _cells(above) == _cells(line), f"{page}: {line}"


def _cells(line: str) -> int:
    return len(re.split(r"(?<!\\)\|", line))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_generated_tables_are_up_to_date(page) -> None:
    assert reference.generated(ROOT / page) == (ROOT / page).read_text(encoding="utf-8"), (
        "run docs/tools/generate_reference.py"
    )


def test_every_command_stands_in_the_reference() -> None:
    page = (ROOT / "docs/reference/command_line.md").read_text(encoding="utf-8")
    named = {block["name"].removeprefix("command ").strip() for block in reference._BLOCK.finditer(page)}
    assert set(COMMANDS) <= named


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_generated_tables_say_what_each_row_means(page) -> None:
    for block in reference._BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        column = 1 if block["name"].startswith(("overlays", "groups")) else -1
        for row in block["body"].strip().splitlines()[2:]:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
            assert cells[column], f"{page}: {cells[0]} has no meaning"


def test_the_readme_maps_every_folder() -> None:
    tree = re.search(
        r"## Where things are\s+```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )[1]
    mapped, top = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        top = top if line.startswith(" ") else name
        mapped.add(top + name if line.startswith(" ") else name)
    tops = {f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and _tracked(path)}
    packages = {
        f"{top}/{path.parent.name}/"
        for top in ("lungsynth", "evaluation")
        for path in (ROOT / top).glob("*/__init__.py")
    }
    assert mapped == tops | packages


def _tracked(path: Path) -> bool:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    return not path.name.startswith((".", "_")) and not any(fnmatch(path.name, name) for name in ignored)


@pytest.mark.parametrize("card", CARDS, ids=str)
def test_cards_follow_the_model_zoo(card) -> None:
    text = (ROOT / card).read_text(encoding="utf-8")
    headings = [heading.strip(" *") for heading in re.findall(r"^##+ +(.+)$", _prose(card), flags=re.MULTILINE)]
    assert [heading for heading in headings if heading in ZOO_HEADINGS] == ZOO_HEADINGS
    assert len(text.encode()) <= 8192
    assert "(keys.md)" in text


@pytest.mark.parametrize("card", CARDS, ids=str)
def test_keys_of_training_and_inference_are_described(card) -> None:
    blocks = {
        block["name"]
        for block in reference._BLOCK.finditer((ROOT / card.with_name("keys.md")).read_text(encoding="utf-8"))
    }
    assert {"keys train.json", "keys inference.json"} <= blocks


@pytest.mark.parametrize("card", CARDS, ids=str)
def test_options_of_trainings_are_keys_of_a_config(card) -> None:
    """MONAI takes unknown keys without a word, so that a renamed one would do nothing."""
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / card).parents[1].glob("configs/*.json")]
    options = set()
    for page in (ROOT / card).parent.glob("*.md"):
        for command in re.findall(r"(?:^|(?<=`))[^`\n]*--[^`\n]*", page.read_text(encoding="utf-8"), re.MULTILINE):
            if not re.search(r"scripts/|lungsynth |ckpt_export|onnx_export", command):
                options |= set(re.findall(r"--([a-z][\w#]+)(?= [^-])", command))
    assert [name for name in options - TOOL_OPTIONS if not any(_has(config, name) for config in configs)] == []


def _has(config, name: str) -> bool:
    """Whether a config has the item of an id such as `train#handlers#0`."""
    for part in name.split("#"):
        config = dict(enumerate(config)) if isinstance(config, list) else config
        key = int(part) if part.isdigit() else part
        if not isinstance(config, dict) or key not in config:
            return False
        config = config[key]
    return True


def test_pages_are_short() -> None:
    for page in ("README.md", "docs/evaluation.md"):
        assert len((ROOT / page).read_text(encoding="utf-8").encode()) <= 8192, page


def test_pages_that_code_names_exist() -> None:
    for source in SOURCES:
        for name in re.findall(r"(?<![\w/])docs/[\w/]+\.md", source.read_text(encoding="utf-8")):
            bundle = ROOT.joinpath(*source.relative_to(ROOT).parts[:2])
            assert (ROOT / name).exists() or (bundle / name).exists(), f"{source.relative_to(ROOT)}: {name}"


def test_the_site_has_every_page_and_its_links_hold() -> None:
    spec = importlib.util.spec_from_file_location("site_links", ROOT / "docs/tools/site_links.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE))
    results = {f"results/{path.name}" for path in (ROOT / "docs/results").glob("*.md")}
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert own - results <= listed
    assert listed <= own | {site.site_name(path) for path in ROOT.glob("bundles/*/docs/README.md")}
    links = "[a](../../bundles/lung_seg_bundle/docs/keys.md#x) [b](../../README.md)"
    assert site.mended(links, ROOT / "docs/how_to/export.md") == "[a](../bundles/lung_seg_bundle/keys.md#x) b"
