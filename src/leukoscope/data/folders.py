"""One walk of a folder: its pictures, found by content, and the files that are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from leukoscope import LeukoscopeError
from leukoscope.data.images import IMAGE_SUFFIXES

# Made by file managers and programs, as names that begin with "." are.
_JUNK = ("@eadir", "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin")
# Files that usually lie beside pictures and need no mention.
_COMPANIONS = (
    *(".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".xlsx", ".xls", ".parquet", ".html"),
    *(".pdf", ".log", ".py", ".ipynb", ".safetensors", ".sha256", ".db"),
)
_MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8")


def is_junk(name: str) -> bool:
    """Whether a file or folder of that name was made by a file manager or another program."""
    return name.startswith(".") or name.casefold() in _JUNK


def is_image_file(path: str) -> bool:
    """Whether a file has the suffix of a picture, or the first bytes of a format that is read here."""
    suffix = _suffix(path)
    if suffix in IMAGE_SUFFIXES or suffix in _COMPANIONS:
        return suffix in IMAGE_SUFFIXES
    try:
        if not os.path.isfile(path):  # opening a pipe would block
            return False
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return begins_as_image(start)


def begins_as_image(start: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of a picture that is read here."""
    bitmap = start[:2] == b"BM" and start[6:10] == bytes(4)
    return start.startswith(_MAGIC) or bitmap or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def left_out(kinds: Counter[str]) -> str:
    """One line on files that are no readable pictures, given as suffix → count; "" for none."""
    if not kinds:
        return ""
    listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
    return f"{kinds.total():,} file(s) left out, no pictures that can be read: {listed}; export them as PNG or JPEG"


class Listing(NamedTuple):
    """The names of the files directly in one folder, sorted.

    `hidden` are pictures by name, and archives' folders, that a file manager or another program has made.
    """

    folder: str
    images: list[str]
    others: list[str]
    hidden: list[str]

    @property
    def kinds(self) -> Counter[str]:
        """Suffix → number of the files that are neither pictures nor usually lie beside them."""
        return Counter(suffix or "no suffix" for suffix in map(_suffix, self.others) if suffix not in _COMPANIONS)


def walk(root: Path) -> Iterator[Listing]:
    """List a folder and those below it, in a fixed order, without hidden files and junk, each file once.

    Raises `LeukoscopeError` for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise LeukoscopeError(
            f"{error.filename}: the folder cannot be read ({error.strerror}); check who may read it, or move it away"
        )

    homes = [Path(root).resolve()]

    def is_entered(path: Path) -> bool:
        if not path.is_symlink():
            return True
        target = path.resolve()
        if any(target.is_relative_to(home) or home.is_relative_to(target) for home in homes):
            return False
        homes.append(target)
        return True

    for folder, inside, files in os.walk(root, followlinks=True, onerror=refuse):
        listing = Listing(folder, [], [], [name for name in sorted(inside) if name.casefold() == "__macosx"])
        inside[:] = [n for n in sorted(inside) if not is_junk(n) and is_entered(Path(folder, n))]
        for name in sorted(files):
            if is_junk(name):
                listing.hidden.extend([name] * (_suffix(name) in IMAGE_SUFFIXES))
            else:
                (listing.images if is_image_file(os.path.join(folder, name)) else listing.others).append(name)
        yield listing


@dataclass(frozen=True)
class ImageFolder:
    """A folder of pictures, walked once.

    Attributes:
        root: the folder.
        images: its pictures in a fixed order, whatever their suffix. Includes broken links; opening one raises
            `UnreachableImage`.
        others: all other files.
        folders: the folders below `root`.
        left_out: one line on hidden files and on those that are no readable pictures; "" without.
    """

    root: Path
    images: list[Path]
    others: list[Path]
    folders: list[Path]
    left_out: str

    @classmethod
    def read(cls, root: Path) -> ImageFolder:
        """Walk a folder; raises `LeukoscopeError` if it cannot be read, or an image's name is not UTF-8."""
        images, others, folders, hidden = [], [], [], list[Path]()
        kinds: Counter[str] = Counter()
        for listing in walk(root):
            folder = Path(listing.folder)
            folders.append(folder)
            images += [folder / name for name in listing.images]
            others += [folder / name for name in listing.others]
            hidden += [folder / name for name in listing.hidden]
            kinds += listing.kinds
        for path in images:
            try:
                str(path).encode()
            except UnicodeEncodeError:
                message = f"{os.fsencode(path)!r}: the name of this image is not UTF-8; rename it"
                raise LeukoscopeError(message) from None
        said = [left_out(kinds)] if kinds else []
        if hidden:
            said.append(f"{len(hidden):,} hidden file(s) of other programs skipped, for example {hidden[0]}")
        return cls(root, sorted(images), others, folders[1:], "; ".join(said))
