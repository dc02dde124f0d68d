"""The documentation site is built from the pages of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_other_servers(tmp_path: Path) -> None:
    """From a repository with a copy of this one's pages and of what they link to."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    kept = (".md", ".py", ".yml", ".png", ".json", ".ipynb", ".html", ".js", ".css", "LICENSE")
    for name in names:
        if name.endswith(kept) and not name.startswith("tests/") and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    command = [sys.executable, "tools/site.py"]  # `make site` without make
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "build/site/index.html").read_text(encoding="utf-8")
    assert "Not a medical device" in page
    reference = (tmp_path / "build/site/docs/python.html").read_text(encoding="utf-8")
    assert "load_dataset" in reference and "LeukoscopeError" in reference
    assert 'src="http' not in page and 'rel="stylesheet" href="http' not in page
    dead = {
        f"{page.name}: {link}"
        for page in (tmp_path / "build/site").rglob("*.html")
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding="utf-8"))
        if not re.match("[a-z]+:", link) and not (page.parent / unquote(urldefrag(link).url)).exists()
    }
    assert not dead, "each link leads to a file, below whatever address the site has"
