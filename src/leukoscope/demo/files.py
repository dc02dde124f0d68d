"""The files of a batch: pictures, tables and zips, checked for size, and unpacked into a folder until they are read.

What is a person and a class there is read as `leukoscope score` and `leukoscope evaluate` read a folder.
"""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from leukoscope import DataError, LeukoscopeError
from leukoscope.data.layouts import class_on_path, is_image, is_junk
from leukoscope.data.names import folded
from leukoscope.data.reading import Reading
from leukoscope.data.table import files_below, is_csv, read_visitor_table, rows_by_picture
from leukoscope.demo import uploads
from leukoscope.demo.uploads import MAX_BYTES, MAX_ZIP, Upload, uploaded
from leukoscope.inference.scoring import open_source
from leukoscope.reports.words import encoded
from leukoscope.synthetic import draw_cell

MAX_FILES = 2000
MAX_UNPACKED = 200 * 2**20  # bytes
LONGEST_NAME = 255
# Two synthetic people of whom the releases of C-NMC know 50 cells at least, which one prediction for a person needs.
SAMPLE_PEOPLE = {"ALL": 6, "HEM": 5}
SAMPLE_CELLS = 56
PEOPLE_UNKNOWN = (
    "Whose cells these are is not known: add a metadata.csv with the columns file_name and subject, or tick “One "
    "folder a person”."
)
# What reading an entry of a damaged zip raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class BatchCell(NamedTuple):
    """A picture that is not yet opened: its file, or the bytes of one; person and class, "" where not known."""

    name: str
    subject: str
    label: str
    source: Path | bytes


class Batch(NamedTuple):
    """The pictures given together, and sentences on what cannot be used or is not known."""

    cells: list[BatchCell]
    problems: list[str]
    notes: list[str]


@cache
def sample_batch() -> Batch:
    """Cells of two synthetic people, each of one class."""
    cells = []
    for (number, label), cell in product(enumerate(SAMPLE_PEOPLE, 1), range(1, SAMPLE_CELLS + 1)):
        picture = Image.fromarray(draw_cell(label, subject=SAMPLE_PEOPLE[label], cell=cell - 1).image)
        person = f"synthetic-{number}"
        cells.append(BatchCell(f"{person}/cell-{cell:02d}.png", person, "", encoded(picture, "PNG", compress_level=1)))
    return Batch(cells, [], [])


@contextmanager
def unpacked(files: Sequence[Upload]) -> Iterator[Path]:
    """A folder with what was uploaded, zips unpacked, which is deleted with the uploads, whatever happens.

    Raises:
        DataError: no file, too many files or bytes, or a zip that is damaged or may harm.
    """
    folder = uploads.new_folder()
    try:
        if not files:
            raise DataError("files: none was sent; give pictures of single cells, or a zip of them")
        _require_sizes(files)
        zips = [file for file in files if is_zip(uploaded(file.path))]
        for file in files:
            if file in zips:
                # Pictures of several zips may have the same names.
                _unpack(file, folder / PurePosixPath(file.name).stem if len(zips) > 1 else folder)
            else:
                target = folder / _safe(file.name, file.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                uploaded(file.path).replace(target)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        uploads.delete(file.path for file in files)


def read_folder(folder: Path, classes: Sequence[str], *, by_folder: bool) -> Batch:
    """The pictures of a folder, with what tables and folders say of them, for a release of these classes.

    Args:
        by_folder: whether the innermost folder of a picture is its person.

    Raises:
        DataError: tables or folders that contradict themselves, or name the people of some pictures only.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not is_junk(path.name))
    named = [path.relative_to(folder).as_posix() for path in files]
    tables = [name for name in named if is_csv(name)]
    others = [name for name in named if not is_csv(name) and not is_image(name)]
    problems = [f"{name}: is no picture that is read here; give PNG, JPEG, BMP, TIFF or WebP" for name in others]
    for name in others:
        (folder / name).unlink()  # a small table of another kind may take the memory of the server
    label_of: dict[str, str] = {}
    subject_of: dict[str, str] = {}
    try:
        for name in tables:
            table = read_visitor_table(name, (folder / name).read_bytes())
            home = folder / PurePosixPath(name).parent
            for file, row in rows_by_picture(table, files_below(home), home).items():
                label_of[(home / file).relative_to(folder).as_posix()] = row.label
        if tables or by_folder:
            source = open_source(str(folder), Reading(subject_folders=by_folder))
            subject_of = {cell.cell_id: cell.subject for cell in source.cells}
    except LeukoscopeError as error:
        # The folders of this machine mean nothing to a visitor.
        raise DataError(str(error).replace(f"{folder}/", "").replace(str(folder), "the pictures")) from None
    spelling = {folded(label): label for label in classes}
    cells = []
    for name in named:
        if is_image(name):
            label = spelling.get(folded(label_of.get(name, ""))) or class_on_path(name, classes)
            cells.append(BatchCell(name, subject_of.get(name, ""), label, folder / name))
    return Batch(cells, problems, [] if any(subject_of.values()) else [PEOPLE_UNKNOWN])


def is_zip(path: Path) -> bool:
    """Whether a file is a zip, or begins as one: what is cut short has lost its directory, which stands at the end."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(path)


def _require_sizes(files: Sequence[Upload]) -> None:
    sizes = {file: uploaded(file.path).stat().st_size for file in files}
    _require_total(f"{len(files)} files", len(files), sum(sizes.values()))
    for file, size in sizes.items():
        limit = MAX_ZIP if is_zip(uploaded(file.path)) else MAX_BYTES
        if size > limit:
            raise DataError(f"{file.name}: is over {limit // 2**20} MB; split it, or crop it to one cell")


def _require_total(name: str, files: int, size: int) -> None:
    if files > MAX_FILES or size > MAX_UNPACKED:
        raise DataError(
            f"{name}: {files} files of {size // 2**20} MB; at most {MAX_FILES} files and {MAX_UNPACKED // 2**20} MB "
            "fit in one batch: split it"
        )


def _safe(name: str, place: str) -> PurePosixPath:
    """The path of a file below the folder of its batch."""
    path = PurePosixPath(name)
    if len(name) > LONGEST_NAME:
        raise DataError(f"{place[:60]}…: is a name of {len(name)} letters; at most {LONGEST_NAME} are read")
    if not path.name or ".." in path.parts or "\\" in name or "\0" in name or path.is_absolute() or name[1:2] == ":":
        raise DataError(f"{place}: holds a path that leads out of it; pack it again")
    return path


def _unpack(file: Upload, folder: Path) -> None:
    """Unpack a zip after its directory was checked for bombs and path tricks; no more than its sizes is written."""
    try:
        with zipfile.ZipFile(uploaded(file.path)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_added(entry.filename)]
            _require_total(file.name, len(entries), sum(entry.file_size for entry in entries))
            for entry in entries:
                _require_plain(entry, f"{file.name}: {entry.filename[:60]}")
            for entry in entries:
                if is_image(entry.filename) or is_csv(entry.filename):
                    target = folder / entry.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(entry))
    except _DAMAGED:
        raise DataError(f"{file.name}: the zip is damaged or cut short; pack or send it again") from None


def _is_added(name: str) -> bool:
    """Whether a file manager, not the visitor, put an entry into a zip."""
    return any(is_junk(part) for part in PurePosixPath(name).parts if not part.startswith(".."))


def _require_plain(entry: zipfile.ZipInfo, place: str) -> None:
    _safe(entry.filename, place)
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{place}: is a link, not a file; pack the pictures themselves")
    if entry.flag_bits & 1:
        raise DataError(f"{place}: is encrypted; pack it without a password")
    # Of other methods, Python's zipfile expands a whole chunk before it counts what came out.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{place}: is not packed by deflate; pack it again as a plain zip")
    if entry.file_size > MAX_BYTES:
        raise DataError(f"{place}: is over {MAX_BYTES // 2**20} MB; crop it to one cell")
