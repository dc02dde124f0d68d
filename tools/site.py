"""Build the documentation site from the pages of the repository: `python tools/site.py`, or `make site`.

The pages are those that are read in the repository. They are copied with every file that they link to, so that each
link is checked; the page on Python gets the reference of the API. Zensical then builds them; any warning is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from api_reference import reference

ROOT = Path(__file__).parents[1]
# Forms, and the templates of cards: no pages.
_NO_PAGES = re.compile(r"\.github/|src/|tests/|model_card/[^/]+\.md$")
_LINK = re.compile(r"\]\(([^)#\s]+)")


def copy_pages(pages: Path) -> None:
    """Copy each tracked Markdown page, and the files that it links to, into that folder (emptied first)."""
    shutil.rmtree(pages, ignore_errors=True)
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    sources = [ROOT / name for name in tracked.stdout.splitlines() if not _NO_PAGES.match(name)]
    linked = {
        (page.parent / link).resolve() for page in sources for link in _LINK.findall(page.read_text(encoding="utf-8"))
    }
    for source in (*sources, *(path for path in linked if path.is_file() and path.is_relative_to(ROOT))):
        target = pages / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    with (pages / "docs" / "python.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{reference()}\n")


if __name__ == "__main__":
    copy_pages(ROOT / "build" / "pages")
    sys.exit(subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=ROOT).returncode)
