"""Many pictures at once: files, or zips, checked for size before a picture is read and never unpacked to disk.

The folders of a zip may name a cell's true class; subjects are found in folders and file names.
"""

from __future__ import annotations

import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.images import IMAGE_SUFFIXES, open_bytes
from leukoscope.data.layouts import is_junk, left_out
from leukoscope.reports.formatting import encoded
from leukoscope.synthetic import PHANTOM_LABELS, draw_cell
from leukoscope.web.memory import give_back_freed_memory
from leukoscope.web.upload import CELL, MAX_BYTES, file_name

MAX_FILES = 2000
MAX_UNPACKED = 200 * 2**20  # bytes
MAX_ZIP = 64 * 2**20
# So many pictures of a batch are decoded at a time, and of large ones fewer: 16 of 8 megapixels take 400 MB.
PICTURES_AT_ONCE = 16
PIXELS_AT_ONCE = CELL.pixels // 2
# Enough for one prediction for a subject, which needs 50 by the releases of C-NMC.
SAMPLE_CELLS = 56
LONGEST_NAME = 255
# What reading an entry of a damaged zip raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)
# Pattern of a subject → how many subjects there must be. Words alone, such as Anna Schmidt, are looked for in folders.
_SUBJECTS = {
    r"UID_(H?\d+)_": 1,
    r"(?:^|/)([^/]*\d[^/]*)/[^/]+$": 1,
    r"(?:^|/)([A-Za-z]+[-_ ]?\d+)[-_ .][^/]*\.[^/.]+$": 2,
    r"(?:^|/)([^/_-]*\d[^/_-]*)[_-][^/]*$": 2,
    r"(?:^|/)([^/]+)/[^/]+$": 1,
}
# Folders that name no subject, beside the classes and folds of a cross-validation.
_NO_SUBJECT = (r"fold[-_ ]?\d+", r"train\w*", r"test\w*", r"val\w*", r"images?", r"pictures?", r"cells?", r"data\w*",
               r"normal", r"healthy", r"benign", r"malignant", r"blasts?", r"leuk\w+", r"controls?", r"cases?",
               r"patients?", r"subjects?")  # fmt: skip


class BatchFile(NamedTuple):
    """One file of a batch, not yet read; `name` is as given, within a zip with its folders."""

    name: str
    read: Callable[[], bytes]


@dataclass
class Batch:
    """The files given together."""

    files: list[BatchFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # a sentence for each file that cannot be used
    archive: str = ""  # name of the one zip that all pictures come from, without its suffix

    def subjects(self, classes: Sequence[str]) -> dict[str, str]:
        """File name → subject, which folders or names tell, or the one zip's name if its cells have one class."""
        names = [file.name for file in self.files]
        if found := subjects_of(names, classes):
            return found
        alone = self.archive and len({true_class(name, classes) for name in names}) == 1
        return dict.fromkeys(names, self.archive if alone else "")


@cache
def sample_batch() -> Batch:
    """Cells of two synthetic subjects, each of one class."""

    def draw(subject: int, cell: int) -> bytes:
        pixels = draw_cell(PHANTOM_LABELS[subject], subject=subject, cell=cell).image
        return encoded(Image.fromarray(pixels), "PNG", compress_level=1)

    known = product(range(len(PHANTOM_LABELS)), range(SAMPLE_CELLS))
    return Batch(
        [BatchFile(f"synthetic-{one + 1}/cell-{cell + 1:02d}.png", partial(draw, one, cell)) for one, cell in known]
    )


def is_zip(path: str) -> bool:
    """Whether a file is a zip, or begins as one: what is cut short has lost its directory, which stands at the end."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(path)
    return False


def true_class(name: str, classes: Sequence[str]) -> str:
    """The class that the innermost folder of a file's name gives; "" where none does."""
    known = {one.casefold(): one for one in classes}
    folders = reversed(PurePosixPath(name).parts[:-1])
    return next((known[one.casefold()] for one in folders if one.casefold() in known), "")


def open_batch(paths: Sequence[str]) -> Batch:
    """List what was uploaded; each picture is read when it is needed, so the files must stay until then.

    Of several zips, each picture's name begins with that of its zip, which may be a subject's.

    Raises:
        LeukoscopeError: too many files or bytes, or a zip that is damaged or may harm.
    """
    for path in paths:
        if not Path(path).is_file():
            raise LeukoscopeError(f"{file_name(path)}: is no longer here; send it again")
    if (size := sum(Path(path).stat().st_size for path in paths)) > MAX_UNPACKED:
        raise LeukoscopeError(
            f"{len(paths)} files of {size // 2**20} MB were given; at most {MAX_UNPACKED // 2**20} MB fit in one "
            "batch: split it"
        )
    archives = [path for path in paths if is_zip(path)]
    batch, files = Batch(), dict[str, BatchFile]()
    # A zip stays open until the next is read: its directory is parsed once, not again for each picture.
    opened = lru_cache(maxsize=1)(zipfile.ZipFile)
    for path in paths:
        name = file_name(path)
        if path in archives:
            stem = PurePosixPath(name).stem
            pictures, others = _entries(path, name, opened)
            if len(archives) > 1:
                pictures = [BatchFile(f"{stem}/{one.name}", one.read) for one in pictures]
            elif len(paths) == 1:
                batch.archive = stem
            if others:
                batch.problems.append(f"{name}: {left_out(others)}")
        elif Path(path).stat().st_size > MAX_BYTES:
            raise LeukoscopeError(f"{name}: is over {MAX_BYTES // 2**20} MB; give pictures of single cells, or a zip")
        else:
            pictures = [BatchFile(name, Path(path).read_bytes)]
        for one in pictures:
            if one.name in files:
                batch.problems.append(f"{one.name}: is the name of two files; only the first is used: rename the other")
            files.setdefault(one.name, one)
    if len(files) > MAX_FILES:
        raise LeukoscopeError(f"{len(files)} files were given; at most {MAX_FILES} fit in one batch: split it")
    batch.files = list(files.values())
    return batch


def read_parts(files: Sequence[BatchFile], problems: list[str]) -> Iterator[tuple[list[str], list[Image.Image], int]]:
    """Decode the pictures of a batch in parts, each to be predicted before the next is decoded.

    Args:
        files: what `open_batch` lists.
        problems: gets a sentence for each picture that cannot be read.

    Yields:
        names and pictures of a part, of at most `PICTURES_AT_ONCE` pictures, and of at most one that goes beyond
        `PIXELS_AT_ONCE`; and how many files are done then.
    """
    names: list[str] = []
    images: list[Image.Image] = []
    pixels = 0
    try:
        for number, file in enumerate(files, 1):
            try:
                images.append(open_bytes(file.read(), file.name, max_pixels=CELL.pixels))
            except LeukoscopeError as error:
                problems.append(str(error))
            else:
                names.append(file.name)
                pixels += images[-1].width * images[-1].height
            if len(images) == PICTURES_AT_ONCE or pixels >= PIXELS_AT_ONCE or number == len(files):
                yield names, images, number
                names = []
                images = []
                pixels = 0
    finally:
        give_back_freed_memory()


def _entries(path: str, name: str, opened: Callable[[str], zipfile.ZipFile]) -> tuple[list[BatchFile], Counter[str]]:
    """The pictures of a zip, and how many files of each other kind it holds."""
    if Path(path).stat().st_size > MAX_ZIP:
        raise LeukoscopeError(f"{name}: is over {MAX_ZIP // 2**20} MB; split it")
    try:
        entries = [entry for entry in opened(path).infolist() if not entry.is_dir() and not _is_added(entry.filename)]
    except (zipfile.BadZipFile, OSError, ValueError):
        raise LeukoscopeError(f"{name}: the zip is damaged or cut short; pack or send it again") from None
    _require_safe(entries, name)
    pictures, others = [], Counter[str]()
    for entry in entries:
        kind = PurePosixPath(entry.filename).suffix.lower()
        if kind in IMAGE_SUFFIXES:
            pictures.append(BatchFile(entry.filename, partial(_unpacked, path, entry, opened)))
        else:
            others[kind or "no suffix"] += 1
    return pictures, others


def _is_added(name: str) -> bool:
    """Whether a file manager, not the visitor, put an entry into a zip."""
    return any(is_junk(part) for part in PurePosixPath(name).parts if not part.startswith(".."))


def _require_safe(entries: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse zip bombs and path tricks by the zip's directory; no more than its sizes is ever unpacked."""
    if len(entries) > MAX_FILES:
        raise LeukoscopeError(f"{name}: holds {len(entries)} files; at most {MAX_FILES} fit in one batch: split it")
    if (size := sum(entry.file_size for entry in entries)) > MAX_UNPACKED:
        raise LeukoscopeError(
            f"{name}: would unpack to {size // 2**20} MB, more than {MAX_UNPACKED // 2**20} MB; split it"
        )
    for entry in entries:
        if len(entry.filename) > LONGEST_NAME:
            raise LeukoscopeError(
                f"{name}: holds {entry.filename[:60]}…, a name of {len(entry.filename)} letters; at most "
                f"{LONGEST_NAME} are read: rename it"
            )
        parts = PurePosixPath(entry.filename).parts
        if ".." in parts or "\\" in entry.filename or re.match("/|[A-Za-z]:", entry.filename):
            raise LeukoscopeError(f"{name}: holds the path {entry.filename!r}, which leads out of it; pack it again")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise LeukoscopeError(f"{name}: {entry.filename} is a link, not a file; pack the pictures themselves")
        if entry.flag_bits & 1:
            raise LeukoscopeError(f"{name}: {entry.filename} is encrypted; pack it without a password")
        # Of other methods, Python's zipfile expands a whole chunk before it counts what came out.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise LeukoscopeError(f"{name}: {entry.filename} is not packed by deflate; pack it again as a plain zip")
        if entry.file_size > MAX_BYTES:
            raise LeukoscopeError(f"{name}: {entry.filename} is over {MAX_BYTES // 2**20} MB; crop it to one cell")


def _unpacked(path: str, entry: zipfile.ZipInfo, opened: Callable[[str], zipfile.ZipFile]) -> bytes:
    try:
        return opened(path).read(entry)
    except _DAMAGED:
        raise LeukoscopeError(f"{entry.filename}: is damaged within its zip; pack it again") from None


def subjects_of(names: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """File name → its subject, as folders or file names tell it; {} where none do.

    The first pattern counts that finds a subject for every file, as many subjects as it needs, and two files of each on
    average (a number of its own for each file is the file's), no class of the release and no fold among them.
    """
    unfit = re.compile("|".join((*_NO_SUBJECT, *map(re.escape, classes))), re.IGNORECASE)
    for pattern, least in _SUBJECTS.items():
        found = {name: match[1] for name in names if (match := re.search(pattern, name))}
        subjects = set(found.values())
        fits = len(found) == len(names) and least <= len(subjects) <= len(names) / 2
        if fits and not any(map(unfit.fullmatch, subjects)):
            return found
    return {}
