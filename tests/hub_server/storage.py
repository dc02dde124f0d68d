"""What a small Hub keeps: repositories of commits that never change, and file contents by their SHA-256 in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

LARGE_SUFFIXES = (".safetensors", ".parquet", ".bin", ".h5")


class Refused(Exception):
    """An answer other than success: HTTP status, the Hub's error code ("" where it sends none) and a sentence."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class File:
    """One file of a commit; `oid` is the blob id that git would give its content."""

    sha256: str
    oid: str
    size: int
    large: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass(frozen=True)
class Commit:
    """A state of a repository; it never changes."""

    oid: str
    title: str
    parent: str
    files: Mapping[str, File]


@dataclass
class Repository:
    """Branches and tags by their names, each naming a commit."""

    id: str
    private: bool
    gated: bool = False  # listed for anybody, its files only for those who have access
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    hardware: str = ""

    def at(self, revision: str) -> Commit:
        """The commit that a branch, tag or (shortened) commit id names."""
        named = self.branches | self.tags
        if revision in named:
            return self.commits[named[revision]]
        found = [commit for oid, commit in self.commits.items() if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found[0]

    def history(self, revision: str) -> list[Commit]:
        """From the newest commit to the first."""
        commits = [self.at(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def add(self, files: Mapping[str, File], title: str, parent: str) -> Commit:
        listed = "".join(f"{path} {file.oid}\n" for path, file in sorted(files.items()))
        oid = hashlib.sha1(f"{self.id} {len(self.commits)} {parent} {title}\n{listed}".encode()).hexdigest()
        commit = Commit(oid, title, parent, dict(files))
        self.commits[oid] = commit
        return commit


class Storage:
    """Every repository, and the contents of their files."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.repositories: dict[str, Repository] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.private_by_default = False  # as an organisation may decide

    def create(self, id: str, private: bool) -> Repository:
        """A new repository with the one file that the Hub puts into each."""
        repository = self.repositories[id] = Repository(id, private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
        first = repository.add({".gitattributes": self.keep(attributes.encode(), large=False)}, "initial commit", "")
        repository.branches["main"] = first.oid
        return repository

    def keep(self, content: bytes, *, large: bool) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        (self._folder / sha256).write_bytes(content)
        return self._described(sha256, content, large)

    def holds(self, sha256: str) -> bool:
        return (self._folder / sha256).is_file()

    def content(self, sha256: str) -> bytes:
        return (self._folder / sha256).read_bytes()

    def large_file(self, sha256: str) -> File:
        if not self.holds(sha256):
            raise Refused(400, "", f"LFS pointer pointed to a file that does not exist: {sha256}")
        return self._described(sha256, self.content(sha256), True)

    @staticmethod
    def _described(sha256: str, content: bytes, large: bool) -> File:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return File(sha256, oid, len(content), large)


def is_large(path: str, size: int) -> bool:
    """Whether a file travels by LFS; the server alone decides."""
    return size > 0 and (PurePosixPath(path).suffix in LARGE_SUFFIXES or size > 10_000_000)
