"""Puts the pages of the bundles into the site, and mends links that leave `docs/` (a hook of mkdocs.yml).

The pages are written to be read in the repository. On the site, those of `bundles/NAME/docs` stand under
`bundles/NAME`; a link to one of them, or to a page of `docs/`, follows it there. What the site has not, such as a
module, is named without a link.
"""

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_ELSEWHERE = ("http://", "https://", "#", "mailto:")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages and pictures of the bundles."""
    from mkdocs.structure.files import File

    for path in sorted(ROOT.glob("bundles/*_bundle/docs/*")):
        if path.suffix in (".md", ".png", ".txt"):
            files.append(File.generated(config, site_name(path) or path.name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Mends the links of a page."""
    return mended(markdown, source_of(page.file.src_uri))


def mended(markdown: str, source: Path) -> str:
    """The text of a page with links that hold on the site.

    Args:
        markdown: as it stands in the repository.
        source: its file there.
    """
    here = site_name(source)

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if match["target"].startswith(_ELSEWHERE):
            return match[0]
        name = site_name((source.parent / target).resolve())
        if name is None or here is None:
            return match["text"]
        moved = os.path.relpath(name, Path(here).parent.as_posix()).replace(os.sep, "/")
        return f"{match['picture']}[{match['text']}]({moved}{'#' + anchor if anchor else ''})"

    return _LINK.sub(link, markdown)


def site_name(path: Path) -> str | None:
    """Where a file of the repository stands on the site; None for what is not there."""
    if not path.is_file() or not path.is_relative_to(ROOT):
        return None
    parts = path.relative_to(ROOT).parts
    if parts[0] == "docs" and parts[1] != "tools":
        return "/".join(parts[1:])
    if parts[0] == "bundles" and len(parts) == 4 and parts[2] == "docs":
        return "/".join(("bundles", parts[1], parts[3]))
    return None


def source_of(src_uri: str) -> Path:
    """The file of the repository that a page of the site is made of."""
    parts = src_uri.split("/")
    if parts[0] == "bundles":
        return ROOT.joinpath("bundles", parts[1], "docs", *parts[2:])
    return ROOT.joinpath("docs", *parts)
