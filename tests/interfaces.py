"""What the tests of interfaces share."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def documented(page: str, heading: str) -> set[str]:
    """The names in backticks that a section of `docs/reference/` has, sub-sections included."""
    text = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    begin = re.search(rf"^(#+) {re.escape(heading)}$", text, flags=re.M)
    rest = text[begin.end() :]
    end = re.search(rf"^#{{1,{len(begin[1])}}} ", rest, flags=re.M)
    return set(re.findall(r"`([^`]+)`", rest[: end.start()] if end else rest))
