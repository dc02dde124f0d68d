"""The documentation site is built from the pages of the repository, and a dead link stops it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with a copy of this one's pages and of what they link to."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    kept = (".md", ".py", ".yml", ".png", ".json", ".ipynb", "LICENSE")
    for name in names:
        if name.endswith(kept) and not name.startswith("tests/") and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    return tmp_path


def build(repository: Path) -> subprocess.CompletedProcess[str]:
    """`make site` without make."""
    command = [sys.executable, "tools/site.py"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_other_servers(clone: Path) -> None:
    done = build(clone)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (clone / "build/site/index.html").read_text(encoding="utf-8")
    assert "Not a medical device" in page
    assert 'src="http' not in page and 'rel="stylesheet" href="http' not in page


@pytest.mark.slow
@pytest.mark.parametrize("link", ["docs/nowhere.md", "docs/train.md#nowhere"])
def test_a_dead_link_stops_the_site(clone: Path, link: str) -> None:
    with (clone / "README.md").open("a", encoding="utf-8") as readme:
        readme.write(f"\n[dead]({link})\n")
    done = build(clone)
    assert done.returncode != 0
    assert "does not exist" in done.stdout + done.stderr
