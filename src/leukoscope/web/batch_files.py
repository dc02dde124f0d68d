"""Many pictures at once: files, or zips, checked for size before a picture is read and never unpacked to disk.

A table among the files names subjects and classes, and is read as `leukoscope patient` reads one. Without a table,
folders may name a cell's true class, and subjects are guessed from names, which the page says.
"""

from __future__ import annotations

import re
import secrets
import stat
import time
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

from leukoscope import DataError, LeukoscopeError
from leukoscope.data.cell_tables import folded, names_files
from leukoscope.data.images import IMAGE_SUFFIXES, is_dark, open_bytes, to_rgb
from leukoscope.data.layouts import class_on_path, is_junk, left_out
from leukoscope.data.subjects import find_subjects, is_table
from leukoscope.data.table_files import table_in
from leukoscope.reports.formatting import encoded
from leukoscope.synthetic import draw_cell
from leukoscope.web.memory import give_back_freed_memory
from leukoscope.web.upload import CELL_LIMIT, MAX_BYTES, file_name

MAX_FILES = 2000
MAX_UNPACKED = 200 * 2**20  # bytes
MAX_ZIP = 64 * 2**20
MAX_TABLE = 10 * 2**20
# So many pictures of a batch are decoded at a time, and of large ones fewer: 16 of 8 megapixels take 400 MB.
PICTURES_AT_ONCE = 16
PIXELS_AT_ONCE = CELL_LIMIT.pixels // 2
# Two synthetic people of whom the releases of C-NMC know 50 cells at least, which one prediction for a subject needs.
SAMPLE_SUBJECTS = {"ALL": 6, "HEM": 5}
SAMPLE_CELLS = 56
LONGEST_NAME = 255
THUMBNAIL_SIDE = 132  # pixels
THUMBNAIL_SECONDS = 0.5  # that a visitor waits for them; what is left out is not missed
# What reading an entry of a damaged zip raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


class BatchFile(NamedTuple):
    """One file of a batch, not yet read; `name` is as given, within a zip with its folders."""

    name: str
    read: Callable[[], bytes]
    picture: bytes = b""  # its picture as lossless WebP, where another model read the batch before


@dataclass(frozen=True)
class BatchFacts:
    """What is known of a batch's pictures before they are predicted.

    Attributes:
        subject_of: name of each picture → its subject; "" where it is not known, and then no prediction for a subject
            is made of it.
        class_of: name of each picture → its true class; "" where it is not known.
        guessed_from: the part of the names that subjects were guessed from; "" where they were not.
        guess: the same in a sentence that lists subjects; "" where they were not guessed.
        notes: sentences for the page: which table names subjects, and what was not used.
    """

    subject_of: dict[str, str]
    class_of: dict[str, str]
    guessed_from: str = ""
    guess: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class Batch:
    """The files given together.

    Attributes:
        files: the pictures.
        problems: a sentence for each file that cannot be used.
        tables: name → content of each file that may name subjects and classes.
        folders_lost: files were sent one by one, without their folders: a table then names them by file name.
        key: sets it apart from every other batch; stays the same for each model that reads it.
    """

    files: list[BatchFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tables: dict[str, bytes] = field(default_factory=dict)
    folders_lost: bool = False
    key: str = field(default_factory=partial(secrets.token_hex, 8), compare=False)

    def facts(self, classes: Sequence[str]) -> BatchFacts:
        """What is known of the pictures, for a release of these classes.

        Raises:
            DataError: a table that cannot be read, contradicts itself or names the subjects of some pictures
                only; subject ids that may stand for two people, as of `find_subjects`; or a path that names two
                classes, as of `class_on_path`.
        """
        names = [file.name for file in self.files]
        named = find_subjects(names, self.tables, classes, folders_lost=self.folders_lost)
        spelling = {folded(label): label for label in classes}
        class_of = {}
        foreign = set()
        for name in names:
            label = named.label_of.get(name, "")
            if label:
                class_of[name] = spelling.get(folded(label), "")
            else:
                class_of[name] = class_on_path(name, classes)
            if label and not class_of[name]:
                foreign.add(label)
        notes = list(named.notes)
        guess = notes.pop(0) if named.guessed_from else ""
        for table, content in self.tables.items():
            if not names_files(table_in(table, content).header):
                notes.append(f"{table}: has no column of image files, such as “file”; it was not used.")
        if foreign:
            notes.append(f"The table names classes that this model does not know: {', '.join(sorted(foreign))}.")
        subject_of = {name: named.subject_of.get(name, "") for name in names}
        return BatchFacts(subject_of, class_of, named.guessed_from, guess, tuple(notes))

    def subjects(self, classes: Sequence[str]) -> dict[str, str]:
        """Name of each picture → its subject, "" where it is not known; errors as of `facts`."""
        return self.facts(classes).subject_of


@cache
def sample_batch() -> Batch:
    """Cells of two synthetic subjects, each of one class."""

    def draw(label: str, cell: int) -> bytes:
        pixels = draw_cell(label, subject=SAMPLE_SUBJECTS[label], cell=cell).image
        return encoded(Image.fromarray(pixels), "PNG", compress_level=1)

    return Batch(
        [
            BatchFile(f"synthetic-{number}/cell-{cell + 1:02d}.png", partial(draw, label, cell))
            for (number, label), cell in product(enumerate(SAMPLE_SUBJECTS, 1), range(SAMPLE_CELLS))
        ]
    )


def is_zip(path: str) -> bool:
    """Whether a file is a zip, or begins as one: what is cut short has lost its directory, which stands at the end."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(path)
    return False


def open_batch(paths: Sequence[str]) -> Batch:
    """List what was uploaded; each picture is read when it is needed, so the files must stay until then.

    If there are several zips, each picture's name begins with that of its zip, which may be a subject's.

    Raises:
        DataError: too many files or bytes, or a zip that is damaged or may harm.
    """
    _require_sizes(paths)
    archives = [path for path in paths if is_zip(path)]
    batch = Batch(folders_lost=len(archives) < len(paths))
    pictures: dict[str, BatchFile] = {}
    # A zip stays open until the next is read: its directory is parsed once, not again for each picture.
    opened = lru_cache(maxsize=1)(zipfile.ZipFile)
    for path in paths:
        name = file_name(path)
        if path in archives:
            files, others = _entries(path, name, opened)
            if len(archives) > 1:
                stem = PurePosixPath(name).stem
                files = [file._replace(name=f"{stem}/{file.name}") for file in files]
            if others:
                batch.problems.append(f"{name}: {left_out(others)}")
        else:
            files = [BatchFile(name, Path(path).read_bytes)]
        for file in files:
            if is_table(file.name):
                batch.tables[file.name] = file.read()
            elif file.name in pictures:
                batch.problems.append(
                    f"{file.name}: is the name of two files; only the first is used: rename the other"
                )
            else:
                pictures[file.name] = file
    if len(pictures) > MAX_FILES:
        raise DataError(f"{len(pictures)} files were given; at most {MAX_FILES} fit in one batch: split it")
    batch.files = list(pictures.values())
    return batch


def _require_sizes(paths: Sequence[str]) -> None:
    for path in paths:
        if not Path(path).is_file():
            raise DataError(f"{file_name(path)}: is no longer here; send it again")
    sizes = {path: Path(path).stat().st_size for path in paths}
    total = sum(sizes.values())
    if total > MAX_UNPACKED:
        raise DataError(
            f"{len(paths)} files of {total // 2**20} MB were given; at most {MAX_UNPACKED // 2**20} MB fit in one "
            "batch: split it"
        )
    for path, size in sizes.items():
        name = file_name(path)
        if is_zip(path):
            if size > MAX_ZIP:
                raise DataError(f"{name}: is over {MAX_ZIP // 2**20} MB; split it")
        else:
            _require_file_size(name, size, name, "give pictures of single cells, or a zip")


def _require_file_size(name: str, size: int, where: str, fix: str) -> None:
    """Refuse a table or a picture that is too large, which `where` names in the message."""
    if is_table(name) and size > MAX_TABLE:
        raise DataError(f"{where}: is over {MAX_TABLE // 2**20} MB; give a table of these pictures alone")
    if size > MAX_BYTES:
        raise DataError(f"{where}: is over {MAX_BYTES // 2**20} MB; {fix}")


def read_parts(files: Sequence[BatchFile], problems: list[str]) -> Iterator[tuple[list[str], list[Image.Image], int]]:
    """Decode the pictures of a batch in parts, each to be predicted before the next is decoded.

    Args:
        files: what `open_batch` lists.
        problems: gets a sentence for each picture that cannot be read.

    Yields:
        names and pictures (RGB, or RGBA where parts are transparent) of a part, of at most `PICTURES_AT_ONCE` pictures,
        and of at most one that goes beyond `PIXELS_AT_ONCE`; and how many files are done then.
    """
    names: list[str] = []
    images: list[Image.Image] = []
    pixels = 0
    try:
        for number, file in enumerate(files, 1):
            try:
                images.append(open_bytes(file.read(), file.name, max_pixels=CELL_LIMIT.pixels, ground=None))
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


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a small WebP, and whether it is shown brighter."""

    content: bytes
    is_dark: bool


def first_thumbnails(files: Sequence[BatchFile], count: int) -> list[Thumbnail]:
    """The first of these pictures as small WebPs: those that can be read, as many as `THUMBNAIL_SECONDS` allow."""
    thumbnails = []
    end = time.monotonic() + THUMBNAIL_SECONDS
    for file in files[:count]:
        with suppress(LeukoscopeError):
            image = open_bytes(file.picture or file.read(), file.name, max_pixels=CELL_LIMIT.pixels)
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            content = encoded(image, "WEBP", quality=80, method=0)
            thumbnails.append(Thumbnail(content, is_dark(to_rgb(image, file.name))))
        if time.monotonic() > end:
            break
    return thumbnails


def _entries(path: str, name: str, opened: Callable[[str], zipfile.ZipFile]) -> tuple[list[BatchFile], Counter[str]]:
    """The pictures and tables of a zip, and how many files of each other kind it holds."""
    try:
        entries = [entry for entry in opened(path).infolist() if not entry.is_dir() and not _is_added(entry.filename)]
    except (zipfile.BadZipFile, OSError, ValueError):
        raise DataError(f"{name}: the zip is damaged or cut short; pack or send it again") from None
    _require_safe(entries, name)
    files = []
    others = Counter[str]()
    for entry in entries:
        kind = PurePosixPath(entry.filename).suffix.lower()
        if kind in IMAGE_SUFFIXES or is_table(entry.filename):
            files.append(BatchFile(entry.filename, partial(_unpacked, path, entry, opened)))
        else:
            others[kind or "no suffix"] += 1
    return files, others


def _is_added(name: str) -> bool:
    """Whether a file manager, not the visitor, put an entry into a zip."""
    return any(is_junk(part) for part in PurePosixPath(name).parts if not part.startswith(".."))


def _require_safe(entries: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse zip bombs and path tricks by the zip's directory; no more than its sizes is ever unpacked."""
    if len(entries) > MAX_FILES:
        raise DataError(f"{name}: holds {len(entries)} files; at most {MAX_FILES} fit in one batch: split it")
    size = sum(entry.file_size for entry in entries)
    if size > MAX_UNPACKED:
        raise DataError(f"{name}: would unpack to {size // 2**20} MB, more than {MAX_UNPACKED // 2**20} MB; split it")
    for entry in entries:
        if len(entry.filename) > LONGEST_NAME:
            raise DataError(
                f"{name}: holds {entry.filename[:60]}…, a name of {len(entry.filename)} letters; at most "
                f"{LONGEST_NAME} are read: rename it"
            )
        parts = PurePosixPath(entry.filename).parts
        if ".." in parts or "\\" in entry.filename or re.match("/|[A-Za-z]:", entry.filename):
            raise DataError(f"{name}: holds the path {entry.filename!r}, which leads out of it; pack it again")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(f"{name}: {entry.filename} is a link, not a file; pack the pictures themselves")
        if entry.flag_bits & 1:
            raise DataError(f"{name}: {entry.filename} is encrypted; pack it without a password")
        # Of other methods, Python's zipfile expands a whole chunk before it counts what came out.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{name}: {entry.filename} is not packed by deflate; pack it again as a plain zip")
        _require_file_size(entry.filename, entry.file_size, f"{name}: {entry.filename}", "crop it to one cell")


def _unpacked(path: str, entry: zipfile.ZipInfo, opened: Callable[[str], zipfile.ZipFile]) -> bytes:
    try:
        return opened(path).read(entry)
    except _DAMAGED:
        raise DataError(f"{entry.filename}: is damaged within its zip; pack it again") from None
