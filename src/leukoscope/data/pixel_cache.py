"""Decode once: every cell of a data set, framed for a network, as one memory-mapped array on disk.

Training reads each cell many times and many runs read the same cells, while decoding a picture costs about as much
CPU as a training step on it. The cache is keyed by the data's fingerprint, and by the functions and
libraries that open and frame pictures.
"""

from __future__ import annotations

import errno
import inspect
import json
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import PIL
from PIL import Image, features

from leukoscope import DataError
from leukoscope.cache import hold, tidy
from leukoscope.data.cells import LoadedCells
from leukoscope.data.images import (
    BACKGROUND_LEVEL,
    BLACK_RGB,
    DECODING_FUNCTIONS,
    FILLED_WITH,
    MAX_PIXELS,
    MAX_SCANS,
    MAX_SIDE_RATIO,
    MIN_SIDE,
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
from leukoscope.files import atomic_file, cache_root, disk_errors, file_state, require_space, write_atomic
from leukoscope.progress import map_in_threads, note

if TYPE_CHECKING:
    from datasets import Dataset

_T = TypeVar("_T")
_BLOCK = 2**22  # bytes written at a time
_ROWS_HELD = 256  # decoded cells whose pages stay in memory


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
    key = sha256(repr((data.fingerprint, ids, preprocessing, ground, decoding_digest())).encode()).hexdigest()[:16]
    files = _CacheFiles(cache_root() / f"cells-{key}.npy", cache_root() / f"cells-{key}.facts.json")
    hold(files.pixels)
    if not files.are_whole():
        _decode_into(files, rows, preprocessing, ground)
    pixels = np.load(files.pixels, mmap_mode="r")
    facts = json.loads(files.facts.read_text(encoding="utf-8"))
    hold(files.pixels)
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


@dataclass(frozen=True)
class _CacheFiles:
    """Where the cache keeps the framed cells of one data set."""

    pixels: Path  # (N, S, S, 3) uint8
    facts: Path  # what `_decode_to` returns, as JSON

    def are_whole(self) -> bool:
        """Whether both files are there, and neither is cut short."""
        try:
            json.loads(self.facts.read_text(encoding="utf-8"))
            np.load(self.pixels, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        return True


def _decode_into(files: _CacheFiles, rows: Dataset, preprocessing: Preprocessing, ground: RgbColour) -> None:
    """Decode and frame the cells into the cache."""
    folder = files.pixels.parent
    shape = (len(rows), preprocessing.image_size, preprocessing.image_size, 3)
    needed = int(np.prod(shape))
    problem = f"{folder}: cannot keep the decoded cells there"
    with disk_errors(problem, "set LEUKOSCOPE_CACHE to another folder", needed=needed):
        folder.mkdir(parents=True, exist_ok=True)
        tidy()
        require_space(folder, needed)
        with atomic_file(files.pixels) as temporary:
            facts = _decode_unchanged(temporary, shape, rows, preprocessing, ground)
        # The facts are written last: their presence says that the pixels are complete.
        try:
            write_atomic(files.facts, json.dumps(facts))
        except OSError:
            files.pixels.unlink()
            raise


def _decode_unchanged(
    path: Path, shape: tuple[int, ...], rows: Dataset, preprocessing: Preprocessing, ground: RgbColour
) -> dict[str, Any]:
    """`_decode_to`, with messages without the names of files; an error if a file is replaced meanwhile."""
    paths = _paths(rows)
    before = [file_state(path) for path in paths]
    facts = _decode_to(path, shape, rows, preprocessing, ground)
    for file, state in zip(paths, before, strict=True):
        if file_state(file) != state:
            raise DataError(f"{file}: was replaced while the cells were decoded; start again")
    # A copy of these cells elsewhere has the same damage, in files of other names.
    names = _names(rows)
    damage = facts["unreadable"].items()
    return facts | {"unreadable": {cell: reason.removeprefix(f"{names[cell]}: ") for cell, reason in damage}}


def _paths(rows: Dataset) -> list[str]:
    """The path of each row's picture; "" for a picture that the data set carries inside."""
    return ["" if row["bytes"] else row["path"] for row in rows.select_columns("image")["image"]]


def _names(rows: Dataset) -> dict[str, str]:
    """Cell id → what messages call its picture."""
    cells = zip(rows["cell_id"][:], _paths(rows), strict=True)
    return {cell: path or f"cell {cell}" for cell, path in cells}


@cache
def decoding_digest() -> str:
    """A digest of everything that affects the decoded pixels: our functions and limits, Pillow and its codecs."""
    sources = [inspect.getsource(function) for function in (*DECODING_FUNCTIONS, Preprocessing.frame, _measured)]
    resized_side = vars(Preprocessing)["resized_side"].fget  # the function of the property
    sources += [inspect.getsource(Preprocessing._resized), inspect.getsource(resized_side)]
    limits = (MAX_PIXELS, MIN_SIDE, MAX_SIDE_RATIO, MAX_SCANS, BACKGROUND_LEVEL)
    codecs = [features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib", "libtiff", "webp", "littlecms2")]
    return sha256(repr((sources, limits, PIL.__version__, codecs)).encode()).hexdigest()


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


def new_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap:
    """Make an array in a file, to be written in place; `OSError` where the disk does not hold all of it.

    Its space is allocated before: writing to a memory map on a disk that has filled ends the process with SIGBUS.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        size = path.stat().st_size
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # macOS and Windows have none, some file systems neither
            if getattr(error, "errno", None) not in (None, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            begin = file.seek(size - array.nbytes)
            for start in range(begin, size, _BLOCK):
                file.write(bytes(min(_BLOCK, size - start)))
    return array


def _decode_to(
    path: Path, shape: tuple[int, ...], cells: Dataset, preprocessing: Preprocessing, ground: RgbColour
) -> dict[str, Any]:
    """Write the framed cells to a file; return hashes, areas and problems for the cache's other file."""
    array = new_array(path, np.uint8, shape)

    def decode(row: int, image: Image.Image) -> tuple[str, float, bool]:
        array[row] = preprocessing.frame(image)
        if row % _ROWS_HELD == 0:
            release_pages(array)
        return _measured(image)

    measured, problems = each_picture(cells, decode, "decoding", ground=ground)
    array.flush()
    nothing = ("", 0.0, False)
    facts = [nothing if of_cell is None else of_cell for of_cell in measured]
    return {
        "unreadable": problems,
        "pixel_hashes": [pixels for pixels, _, _ in facts],
        "areas": [area for _, area, _ in facts],
        "filled": sum(is_filled for _, _, is_filled in facts),
    }


def _measured(image: Image.Image) -> tuple[str, float, bool]:
    """The hash of a decoded picture, the share that a cell on black covers, and whether anything was transparent."""
    return pixel_hash(image), round(cell_area(np.asarray(image)), 6), FILLED_WITH in image.info
