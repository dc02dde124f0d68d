"""Write the address of the public repository into the files that name it: `make publish REPOSITORY=https://…`.

It is empty until the repository is public, because nothing may be installed from a name that anybody can take. Written
are [project.urls], CITATION.cff, the notebooks, which install from it, and the README's badge.
"""

from __future__ import annotations

import re
from pathlib import Path

from leukoscope import LeukoscopeError
from leukoscope.files import write_atomic

_ADDRESS = re.compile(r"https://(?P<host>[\w.-]+)/(?P<id>[\w.-]+/[\w.-]+)")
LESSON = "notebooks/leakage.ipynb"


def write_address(root: Path, address: str) -> list[Path]:
    """Write the address into every file that names it; the files.

    Raises:
        LeukoscopeError: what is no address of a repository, or a file without its place for it.
    """
    address = address.removesuffix("/").removesuffix(".git")
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise LeukoscopeError(f"REPOSITORY={address}: give the repository's address as https://host/owner/name")
    badge = ""
    if match["host"] == "github.com":  # which Colab opens notebooks from
        page = f"https://colab.research.google.com/github/{match['id']}/blob/main/{LESSON}"
        badge = f" [![The lesson in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({page})"
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    changes = [
        (root / "pyproject.toml", r"(\[project\.urls\]\n)(?:Repository = .*\n)?", rf'\1Repository = "{address}"\n'),
        (root / "CITATION.cff", r"(\nlicense: .*\n)(?:repository-code: .*\n)?", rf"\1repository-code: {address}\n"),
        (root / "README.md", r"\A(# Leukoscope)(?: \[!.*)?\n", rf"\1{badge}\n"),
        *((path, r'(SOURCE = \\")[^"\\]*(\\")', rf"\1git+{address}\2") for path in notebooks),
    ]
    texts = {}
    for path, pattern, replacement in changes:
        texts[path], count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"))
        if count != 1:
            raise LeukoscopeError(f"{path}: has {count} places for the repository's address; restore the one")
    return [write_atomic(path, text) for path, text in texts.items()]
