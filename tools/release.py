"""Check that everything agrees on the version to release, and print the steps: `make release`.

The workflow that publishes runs `python tools/release.py --tag v0.1.0`, which checks the files alone.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS = """\
git tag --annotate v{version} --message "Leukoscope {version}"
git push origin main v{version}      # tests, builds and publishes: .github/workflows/ci.yml
Make a release of the tag on GitHub, with the entry of CHANGELOG.md as its text.
Begin the next version: __version__, CITATION.cff, and "## <version> — unreleased" in CHANGELOG.md.
"""


def disagreements(root: Path, version: str) -> Iterator[str]:
    """What speaks of another version than the source, or gives it no date."""
    newest, date = _only(r"^## (\S+ — \S+)$", root / "CHANGELOG.md").split(" — ")
    if newest != version:
        yield f"CHANGELOG.md: its newest entry is of {newest}, __version__ is {version}; make them the same"
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        yield f"CHANGELOG.md: {newest} is {date}; write the day of the release instead"
    for key, expected in (("version", version), ("date-released", date)):
        cited = _only(rf"^{key}: (\S+)$", root / "CITATION.cff")
        if cited != expected:
            yield f"CITATION.cff: {key} is {cited}, that of the release {expected}; make them the same"


def unready(root: Path, version: str) -> Iterator[str]:
    """What is wrong with the working tree."""
    if changed := _git(root, "status", "--porcelain"):
        yield f"working tree: {len(changed.splitlines())} file(s) differ from the last commit; commit or remove them"
    if (branch := _git(root, "branch", "--show-current")) != "main":
        yield f"branch {branch or '(none)'}: releases are made from main; git switch main"
    if _git(root, "tag", "--list", f"v{version}"):
        yield f"tag v{version}: is there already; raise __version__"


def _only(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit(f"error: {path}: no line matches {pattern}; restore it")
    return found[1]


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def main(root: Path = ROOT) -> None:
    """Check, then print the steps; exits with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tag", help="check that this tag is of the version, and leave the working tree alone")
    tag = parser.parse_args().tag
    version = _only(r'^__version__ = "(.+)"$', root / "src" / "leukoscope" / "__init__.py")
    problems = [*disagreements(root, version), *([] if tag else unready(root, version))]
    if tag and tag != f"v{version}":
        problems.append(f"tag {tag}: __version__ is {version}; tag v{version}")
    if problems:
        sys.exit("\n".join(f"error: {problem}" for problem in problems))
    print(f"{version} is ready" if tag else STEPS.format(version=version), end="\n" if tag else "")


if __name__ == "__main__":
    main()
