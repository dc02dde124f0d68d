"""Decode once: every cell of a data set, framed for a network, as one memory-mapped array on disk.

Training reads each cell many times and many runs read the same cells, while decoding a picture costs about as much
CPU as a training step on it. The cache is keyed by the data's fingerprint, and by what opens and frames pictures.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import PIL
from PIL import Image, features

from leukoscope import DataError
from leukoscope.cache import cache_root, entry_folder, intact, replacing
from leukoscope.data.cells import LoadedCells
from leukoscope.data.images import (
    BLACK_RGB,
    FILLED_WITH,
    RgbColour,
    UnreachableImage,
    UnreadableImage,
    cell_area,
    filled_note,
    open_encoded,
    pixel_hash,
)
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.registry import ground_rgb
from leukoscope.data.splits import groups_of
from leukoscope.files import disk_errors, file_state
from leukoscope.progress import map_in_threads, note

if TYPE_CHECKING:
    from datasets import Dataset

DECODING_VERSION = 1
"""Changes whenever the same file gets other framed pixels, another hash or another area, or is refused now."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class FramedCells:
    """All cells of a data set as network-sized pixels, addressed by cell id."""

    data: LoadedCells  # less the cells found damaged
    pixels: np.ndarray  # (N, S, S, 3) uint8, memory-mapped; zeros where unreadable
    row_of: dict[str, int]  # cell id → row of `pixels`
    labels: np.ndarray  # (N,) class index
    subjects: list[str]  # (N,) ids; where a data set names none, the block of neighbouring images a cell belongs to
    hashes: list[str]  # (N,) `pixel_hash` of the decoded pictures ("" where unreadable)
    areas: np.ndarray  # (N,) share of its whole picture that each cell covers, however framed (0 where unreadable)

    def rows(self, cell_ids: tuple[str, ...]) -> np.ndarray:
        """Rows of the given cells, in their order; cells found damaged are not among them."""
        return np.asarray([self.row_of[cell] for cell in cell_ids], dtype=np.int64)

    def areas_of(self, rows: np.ndarray) -> np.ndarray | None:
        """(N,) the `areas` of these cells; None for cells not on black."""
        return self.areas[rows] if self.data.info.background == "black" else None

    def hashes_of(self, rows: np.ndarray) -> tuple[str, ...]:
        """The `hashes` of these cells."""
        return tuple(self.hashes[row] for row in rows.tolist())


class PixelRows:
    """Some rows of framed cells' pixels, read when they are indexed: an index array into a memory map copies them."""

    def __init__(self, pixels: np.ndarray, rows: np.ndarray):
        """Take (N,) `rows` of the pixels, in the order wanted, without reading them."""
        self._pixels = pixels
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | np.integer | slice | np.ndarray) -> np.ndarray:
        """(S, S, 3) for a number, (B, S, S, 3) for a slice or an array of numbers."""
        return read_rows(self._pixels, self._rows[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (read_rows(self._pixels, row) for row in self._rows)


def read_rows(array: np.ndarray, rows: np.ndarray | np.integer) -> np.ndarray:
    """A copy of some rows of an array, which a memory map keeps out of the process's memory."""
    copied: np.ndarray = np.asarray(array).take(rows, axis=0)
    release_pages(array)
    return copied


def release_pages(array: np.ndarray) -> None:
    """Take the pages of a memory map out of this process's memory; the system's cache keeps them while it has room."""
    pages = getattr(array, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def frame_cells(data: LoadedCells, preprocessing: Preprocessing) -> FramedCells:
    """Frame every cell, including the publisher's test set; reads the cache if the cells were framed before.

    Cells whose pictures turn out damaged are left out of `data`, and their rows are zeros. Transparent parts are filled
    with the colour that the data set's cells lie on, and a note says in how many pictures.

    Raises:
        LeukoscopeError: the cache folder cannot be written (full disk, no permission), or a file that is missing now.
    """
    rows = data.rows
    ids = rows["cell_id"][:]
    ground = ground_rgb(data.info)
    codecs = [features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib", "libtiff", "webp", "littlecms2")]
    versions = (DECODING_VERSION, PIL.__version__, codecs)
    folder = entry_folder("cells", data.fingerprint, ids, preprocessing, ground, versions)
    pixels_file = folder / "pixels.npy"
    facts_file = folder / "facts.json"
    if not (intact(facts_file) and intact(pixels_file)):
        needed = len(rows) * 3 * preprocessing.image_size**2
        problem = f"{cache_root()}: cannot keep the decoded cells there"
        with disk_errors(problem, "set LEUKOSCOPE_CACHE to another folder", needed=needed):
            with replacing(pixels_file, needed=needed) as temporary:
                facts = _decode_to(temporary, rows, preprocessing, ground)
            with replacing(facts_file) as temporary:
                temporary.write_text(json.dumps(facts), encoding="utf-8")
    pixels = np.load(pixels_file, mmap_mode="r")
    facts = json.loads(facts_file.read_text(encoding="utf-8"))
    note(filled_note(facts["filled"], len(rows), ground), err=True)
    unreadable = facts["unreadable"]
    # Splits are drawn without damaged cells, so blocks are counted without them.
    names = _names(rows)
    undamaged = data.without({cell: f"{names[cell]}: {reason}" for cell, reason in unreadable.items()})
    units = groups_of(undamaged, data.info.group)
    subjects = [units.get(cell, "") for cell in ids]
    labels = np.asarray(rows["label"][:])
    row_of = {cell: row for row, cell in enumerate(ids) if cell not in unreadable}
    areas = np.asarray(facts["areas"], dtype=float)
    return FramedCells(undamaged, pixels, row_of, labels, subjects, facts["pixel_hashes"], areas)


def _paths(rows: Dataset) -> list[str]:
    """The path of each row's picture; "" for a picture that the data set carries inside."""
    return ["" if row["bytes"] else row["path"] for row in rows.select_columns("image")["image"]]


def _names(rows: Dataset) -> dict[str, str]:
    """Cell id → what messages call its picture."""
    cells = zip(rows["cell_id"][:], _paths(rows), strict=True)
    return {cell: path or f"cell {cell}" for cell, path in cells}


def without_damaged(data: LoadedCells) -> LoadedCells:
    """The cells whose pictures can be decoded, of which training draws its split; `unreadable` names the others."""
    _, problems = each_picture(data.rows, lambda row, image: None, "looking for damaged pictures")
    return data.without(problems)


def each_picture(
    rows: Dataset, use: Callable[[int, Image.Image], _T], label: str, *, ground: RgbColour = BLACK_RGB
) -> tuple[list[_T | None], dict[str, str]]:
    """Call `use` with each row and its RGB picture: the results (None for damaged pictures), and cell id → message.

    Transparent parts are filled with `ground`.

    Raises:
        UnreachableImage: a drive that is gone for a moment says nothing of its cells.
    """
    ids = rows["cell_id"][:]
    problems: dict[str, str] = {}

    def used(row: int) -> _T | None:
        try:
            return use(row, open_encoded(rows[row]["image"], ids[row], ground=ground))
        except UnreachableImage:
            raise
        except UnreadableImage as error:
            problems[ids[row]] = str(error)
            return None

    of_rows = map_in_threads(used, range(len(ids)), label)
    return of_rows, {cell: problems[cell] for cell in ids if cell in problems}


def write_header(file: BinaryIO, dtype: type[np.generic], shape: tuple[int, ...]) -> int:
    """Begin a .npy file, whose values are written after it, and return its length so far.

    A full disk is then an `OSError`; writing to a memory map would end the process with SIGBUS.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _decode_to(path: Path, cells: Dataset, preprocessing: Preprocessing, ground: RgbColour) -> dict[str, Any]:
    """Write the framed cells to a file; return hashes, areas and problems for the cache's other file.

    Raises:
        DataError: a picture's file is replaced meanwhile.
    """
    paths = _paths(cells)
    before = [file_state(path) for path in paths]
    shape = (len(cells), preprocessing.image_size, preprocessing.image_size, 3)
    lock = Lock()
    with path.open("wb") as file:
        begin = write_header(file, np.uint8, shape)
        file.truncate(begin + int(np.prod(shape)))  # zeros where unreadable

        def decode(row: int, image: Image.Image) -> tuple[str, float, bool]:
            pixels = preprocessing.frame(image)
            with lock:
                file.seek(begin + row * pixels.nbytes)
                file.write(np.ascontiguousarray(pixels).data)
            return pixel_hash(image), round(cell_area(np.asarray(image)), 6), FILLED_WITH in image.info

        measured, problems = each_picture(cells, decode, "decoding", ground=ground)
    for picture, state in zip(paths, before, strict=True):
        if file_state(picture) != state:
            raise DataError(f"{picture}: was replaced while the cells were decoded; start again")
    facts = [of_cell or ("", 0.0, False) for of_cell in measured]
    # A copy of these cells elsewhere has the same damage, in files of other names.
    names = _names(cells)
    return {
        "unreadable": {cell: reason.removeprefix(f"{names[cell]}: ") for cell, reason in problems.items()},
        "pixel_hashes": [pixels for pixels, _, _ in facts],
        "areas": [area for _, area, _ in facts],
        "filled": sum(is_filled for _, _, is_filled in facts),
    }
