"""Build the documentation site from the pages of the repository: `python tools/site.py`, or `make site`.

The pages are those that are read in the repository. They are copied with every file that they link to, so that each
link is checked; the page on Python gets the reference of the API. Zensical then builds them; any warning is an error.
"""

from __future__ import annotations

import pydoc
import re
import shutil
import subprocess
import sys
from pathlib import Path

import leukoscope

ROOT = Path(__file__).parents[1]
# These names are meant to stay; others may change from one version to the next.
PUBLIC = (
    *(f"leukoscope.{name}" for name in leukoscope.__all__ if callable(getattr(leukoscope, name))),
    *("leukoscope.data.cells.LoadedCells", "leukoscope.data.splits.Split", "leukoscope.data.splits.load_split"),
    *("leukoscope.synthetic.draw_cell", "leukoscope.synthetic.draw_smear", "leukoscope.synthetic.phantom_cells"),
    *("leukoscope.inference.prediction.Reason", "leukoscope.inference.prediction.Checks"),
    *("leukoscope.inference.runtime.Runtime", "leukoscope.inference.subject.SubjectPrediction"),
    *("leukoscope.inference.smear.SmearReading", "leukoscope.models.weights.load_release"),
    *("leukoscope.evaluation.metrics.CellPredictions", "leukoscope.evaluation.metrics.measure"),
    *("leukoscope.reports.card.write_card", "leukoscope.hub.publish.publish", "leukoscope.hub.publish.Destination"),
)
# Forms, and the templates of cards: no pages.
_NO_PAGES = re.compile(r"\.github/|src/|tests/|model_card/[^/]+\.md$")
_LINK = re.compile(r"\]\(([^)#\s]+)")
_TEXT_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)\)")


def copy_pages(pages: Path) -> None:
    """Copy each tracked Markdown page, and the files that it links to, into that folder (emptied first)."""
    shutil.rmtree(pages, ignore_errors=True)
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    sources = [ROOT / name for name in tracked.stdout.splitlines() if not _NO_PAGES.match(name)]
    linked = {
        (page.parent / link).resolve() for page in sources for link in _LINK.findall(page.read_text(encoding="utf-8"))
    }
    files = (path for path in linked if path.is_file() and path.is_relative_to(ROOT) and _is_shown(path))
    for source in (*sources, *files):
        target = pages / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    for source in sources:
        copy = pages / source.relative_to(ROOT)
        copy.write_text(_without_dead_links(copy.read_text(encoding="utf-8"), source.parent), encoding="utf-8")
    with (pages / "docs" / "python.md").open("a", encoding="utf-8") as page:
        for name in PUBLIC:
            described = pydoc.plain(pydoc.render_doc(name, title="%s"))
            page.write(f"\n## `{name}`\n\n```text\n{described}\n```\n")


def _is_shown(path: Path) -> bool:
    """Whether the site can show a file: a template of a page would be shown as a broken page."""
    return path.suffix != ".html"


def _without_dead_links(text: str, folder: Path) -> str:
    """The text of a page in `folder`; links to folders and templates, which the site does not have, become text."""

    def linked_or_text(link: re.Match[str]) -> str:
        path = folder / link[2]
        is_dead = path.is_dir() or (path.is_file() and not _is_shown(path))
        return link[1] if is_dead else link[0]

    return _TEXT_LINK.sub(linked_or_text, text)


def main() -> int:
    """Build the site; the exit status."""
    copy_pages(ROOT / "build" / "pages")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    status = subprocess.run(command, cwd=ROOT).returncode
    # Its addresses begin at the root of a host, but GitHub serves a project's site below the project's name.
    (ROOT / "build" / "site" / "404.html").unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
