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
from zipfile import ZIP_DEFLATED, ZIP_STORED

from PIL import Image

from leukoscope import DataError, LeukoscopeError
from leukoscope.data.layouts import class_on_path, is_image, is_junk
from leukoscope.data.names import folded
from leukoscope.data.reading import Reading
from leukoscope.data.table import files_below, is_csv, read_visitor_table, rows_by_picture
from leukoscope.demo import uploads
from leukoscope.demo.uploads import MAX_BYTES, Upload, uploaded
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
    "folder a person” and give them again."
)
# What unpacking a damaged zip raises, or one that holds a file and a folder of the same name.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, FileExistsError, NotADirectoryError,
            IsADirectoryError)  # fmt: skip


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
        paths = [uploaded(file.path) for file in files]
        _require_total(f"{len(files)} files", [path.stat().st_size for path in paths])
        zips = sum(file.is_zip for file in files)
        for file, path in zip(files, paths, strict=True):
            if file.is_zip:
                # Pictures of several zips may have the same names.
                _unpack(path, file.name, folder / PurePosixPath(file.name).stem if zips > 1 else folder)
            else:
                _require_inside(file.name, file.name)
                target = folder / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for file in files:
            uploads.delete(file.path)


def read_folder(folder: Path, classes: Sequence[str], *, by_folder: bool) -> Batch:
    """The pictures of a folder, with what tables and folders say of them, for a release of these classes.

    Args:
        by_folder: whether the innermost folder of a picture is its person.

    Raises:
        DataError: tables or folders that contradict themselves, or name the people of some pictures only.
    """
    pictures = []
    tables = []
    problems = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not is_junk(path.name)):
        name = path.relative_to(folder).as_posix()
        if is_csv(name):
            tables.append(name)
        elif not is_image(name):
            problems.append(f"{name}: is no picture that is read here; give PNG, JPEG, BMP, TIFF or WebP")
            path.unlink()  # a small table of another kind may take the memory of the server
        elif path.stat().st_size > MAX_BYTES:
            problems.append(f"{name}: is over {MAX_BYTES // 2**20} MB; crop it to one cell")
        else:
            pictures.append(name)
    label_of: dict[Path, str] = {}
    subject_of: dict[str, str] = {}
    try:
        for name in tables:
            table = read_visitor_table(name, (folder / name).read_bytes())
            home = (folder / name).parent
            rows = rows_by_picture(table, files_below(home), home)
            label_of |= {home / file: row.label for file, row in rows.items()}
        if tables or by_folder:
            source = open_source(str(folder), Reading(subject_folders=by_folder))
            subject_of = {cell.cell_id: cell.subject for cell in source.cells}
    except LeukoscopeError as error:
        # The folders of this machine mean nothing to a visitor.
        raise DataError(str(error).replace(f"{folder}/", "").replace(str(folder), "the pictures")) from None
    spelling = {folded(label): label for label in classes}
    cells = []
    for name in pictures:
        label = spelling.get(folded(label_of.get(folder / name, ""))) or class_on_path(name, classes)
        cells.append(BatchCell(name, subject_of.get(name, ""), label, folder / name))
    return Batch(cells, problems, [] if any(subject_of.values()) else [PEOPLE_UNKNOWN])


def _require_total(name: str, sizes: Sequence[int]) -> None:
    if len(sizes) > MAX_FILES or sum(sizes) > MAX_UNPACKED:
        raise DataError(
            f"{name}: {len(sizes)} files of {sum(sizes) // 2**20} MB; at most {MAX_FILES} files and "
            f"{MAX_UNPACKED // 2**20} MB fit in one batch: split it"
        )


def _require_inside(name: str, place: str) -> None:
    """Refuse a path that may lie outside the folder of its batch."""
    path = PurePosixPath(name)
    is_odd = "\\" in name or "\0" in name or name[1:2] == ":" or len(name) > LONGEST_NAME
    if is_odd or not path.name or ".." in path.parts or path.is_absolute():
        raise DataError(f"{place[:LONGEST_NAME]}: holds a path that leads out of it or is too long; pack it again")


def _unpack(path: Path, name: str, folder: Path) -> None:
    """Unpack a zip after its directory was checked for bombs and path tricks; no more than its sizes is written."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir() and not _is_added(entry.filename)]
            _require_total(name, [entry.file_size for entry in entries])
            for entry in entries:
                place = f"{name}: {entry.filename[:60]}"
                _require_inside(entry.filename, place)
                is_link = stat.S_ISLNK(entry.external_attr >> 16)
                # Of other methods, Python's zipfile expands a whole chunk before it counts what came out.
                if is_link or entry.flag_bits & 1 or entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                    raise DataError(f"{place}: is a link, encrypted, or not packed by deflate; pack it as a plain zip")
            archive.extractall(folder, entries)
    except _DAMAGED:
        raise DataError(f"{name}: the zip is damaged or cut short; pack or send it again") from None


def _is_added(name: str) -> bool:
    """Whether a file manager, not the visitor, put an entry into a zip."""
    return any(is_junk(part) for part in PurePosixPath(name).parts if not part.startswith(".."))
