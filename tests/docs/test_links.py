"""Pages that people read: every link leads somewhere, and every page is listed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(\s*([^)\s]+)\s*\)")


def _prose(page: Path) -> str:
    """A page without its code, in which brackets mean other things."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def _dead(page: Path) -> Iterator[str]:
    for target in LINK.findall(_prose(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            yield f"{page.name}: {target}: no such file"
        elif anchor and anchor not in _anchors(file):
            yield f"{page.name}: {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    assert not list(_dead(page))


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# What a *leak* is worth\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#what-a-leak-is-worth) [b](other.md#no-heading) [c](gone.md) `[d](not_a_link)`\n")
    assert list(_dead(page)) == ["page.md: other.md#no-heading: no such heading", "page.md: gone.md: no such file"]


def test_every_page_is_listed_in_the_index_and_in_the_readme() -> None:
    pages = [page for page in PAGES if page.parent == ROOT / "docs" and page.name != "README.md"]
    for index in (ROOT / "docs" / "README.md", ROOT / "README.md"):
        linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(index.read_text())}
        assert not [page.name for page in pages if page not in linked], index


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 92
