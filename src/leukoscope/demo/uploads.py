"""A visitor's files: in a folder of this process, read once and deleted; what was read stays in memory for two hours.

The folder of each upload has a random name that only its sender knows. Nothing else of this machine is looked at.
"""

from __future__ import annotations

import atexit
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leukoscope import RESEARCH_NOTICE, DataError
from leukoscope.data.images import UnreadableImage, check_header, open_image
from leukoscope.demo.pictures import Picture
from leukoscope.files import disk_errors

MAX_BYTES = 20 * 2**20  # of one picture
MAX_ZIP = 64 * 2**20
MAX_KEPT = 128 * 2**20  # bytes of pixels of one visitor
KEPT_SECONDS = 2 * 3600
ANSWER_SECONDS = 300  # a program fetches the picture of its answer at once
SWEEP_SECONDS = 60
ANSWERS = "answers"
FOLDER = "leukoscope-"  # how the names of folders of processes begin
LOST = "This is no upload of yours, or it was deleted; give it again."

_held: list[FileLock] = []  # of the folder of this process; a lock that is forgotten is released


class Limit(NamedTuple):
    """How many pixels a picture may have, what it should show, and how to shrink a larger one."""

    pixels: int
    shows: str
    remedy: str


# A crop of one cell is below 1 megapixel and a microscope's whole frame about 5.
CELL_LIMIT = Limit(8_000_000, "one cell", "crop it to the cell")
SMEAR_LIMIT = Limit(16_000_000, "a smear", "cut it into parts")


class Upload(NamedTuple):
    """A file on its way to a model."""

    path: str
    name: str


class Chosen(NamedTuple):
    """What a strip was given: the name of an example, or files."""

    example: str
    files: tuple[Upload, ...] = ()

    @property
    def is_batch(self) -> bool:
        """Whether the files belong into a batch: several, or a zip."""
        return len(self.files) > 1 or any(file.name.lower().endswith(".zip") for file in self.files)


def own_folder(root: Path | None = None) -> Path:
    """Make the folder of this process, which goes when the process ends, and delete those of dead processes.

    Args:
        root: where it is made; None for GRADIO_TEMP_DIR or the system's folder of temporary files.

    Raises:
        LeukoscopeError: it cannot be written there.
    """
    root = root or Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    with disk_errors(f"{root}: uploads cannot be written there", "set GRADIO_TEMP_DIR to a folder of yours"):
        root.mkdir(parents=True, exist_ok=True)
        for lock in root.glob(f"{FOLDER}*/lock"):
            # A process that lives holds its lock.
            with suppress(OSError, Timeout), FileLock(lock, timeout=0):
                shutil.rmtree(lock.parent)
        folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=root)).resolve()
        own_lock = FileLock(folder / "lock")
        own_lock.acquire()
        _held.append(own_lock)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def folder() -> Path:
    """The folder that uploads are written to."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()).resolve()


def sweep() -> None:
    """Delete files older than two hours, and pictures of answers older than six minutes; goes on for ever."""
    while True:
        time.sleep(SWEEP_SECONDS)
        delete_old(time.time())


def delete_old(now: float) -> None:
    """Delete the files whose time is over at a time in seconds since 1970."""
    for path in folder().rglob("*"):
        seconds = ANSWER_SECONDS if ANSWERS in path.parts else KEPT_SECONDS
        with suppress(OSError):
            if path.name != "lock" and path.is_file() and now - path.stat().st_mtime > seconds:
                path.unlink()


def uploaded(path: object) -> Path:
    """The file of an upload that is still there.

    Raises:
        DataError: anything else, always in the same words.
    """
    with suppress(OSError, ValueError):  # a name that is too long or holds a zero byte
        file = Path(str(path))
        is_own = file.resolve() == file.absolute() and folder() in file.parents
        if is_own and file.name != "lock" and file.is_file():
            return file
    raise DataError(LOST)


def delete(paths: Iterable[object]) -> None:
    """Delete these uploads and nothing else: a visitor may name any file."""
    for path in paths:
        with suppress(OSError, DataError):
            file = uploaded(path)
            file.unlink()
            file.parent.rmdir()  # without other files of the same upload
            file.parent.parent.rmdir()


def read_picture(upload: Upload, limit: Limit) -> Picture:
    """An uploaded picture, upright and fully in memory; its file is deleted in any case.

    Raises:
        UnreadableImage: over 20 MB or the limit, or for any reason of `open_image`.
        DataError: no upload.
    """
    file = uploaded(upload.path)
    name = file_name(upload.name or file.name)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UnreadableImage(f"{name}: is over {MAX_BYTES // 2**20} MB; {limit.remedy}")
        size = check_header(file)
        if math.prod(size) > limit.pixels:
            raise UnreadableImage(
                f"{name}: is {size[0]}×{size[1]} pixels, more than the {limit.pixels // 1_000_000} megapixels "
                f"{limit.shows} may take here; {limit.remedy}"
            )
        return Picture(open_image(file, ground=None), name)
    except UnreadableImage as error:
        # The folders of this machine mean nothing to a visitor.
        raise UnreadableImage(str(error).replace(str(file), name)) from None
    finally:
        delete([file])


def file_name(path: str) -> str:
    """What a visitor called a file, without its folders."""
    return path.replace("\\", "/").rsplit("/", 1)[-1][:120]


def new_folder(kind: str = "") -> Path:
    """A new folder below that of this process, with a name that nobody guesses."""
    new = folder() / kind / secrets.token_hex(16)
    new.mkdir(parents=True)
    return new


def png_answer(image: Image.Image) -> str:
    """Write a picture that the API returns as a PNG, and give its path; it is deleted within six minutes."""
    with disk_errors("the answer cannot be written", "try again in a few minutes"):
        path = new_folder(ANSWERS) / "image.png"
        texts = PngInfo()
        texts.add_text("Disclaimer", RESEARCH_NOTICE)
        image.save(path, compress_level=1, pnginfo=texts)
    return str(path)


def as_chosen(value: Any) -> Chosen:
    """What a strip was given, whatever a request holds.

    Raises:
        DataError: neither an example nor files.
    """
    # Not `path`: what has one is a file of Gradio's, which an upload that was read is no longer.
    try:
        value = value or {}
        files = [Upload(str(file["upload"]), str(file.get("name") or "")) for file in value.get("files") or ()]
        return Chosen(str(value.get("example") or ""), tuple(files))
    except (AttributeError, KeyError, TypeError):
        raise DataError('picture: expected {"example": …} or {"files": [{"upload": …, "name": …}]}') from None


def as_example(name: str) -> dict[str, Any]:
    """What a strip is given from here: its values are names of ours, never a visitor's."""
    return {"example": name, "files": []}


class Visit:
    """What one visitor gave, in memory only: at most `MAX_KEPT` bytes of pixels, for at most two hours.

    Attributes:
        asked: number of the newest question of each tab: an older one stops.
        cell: the cell that is asked about.
        handed: what was given in one tab and belongs into another.
        smear_picture, smear: the smear that is shown, and its reading, whose cells can be opened.
        given, batch: the files of a batch that is about to be read, and its result, whose cells can be opened.
        stopped: number of the question about a batch that was stopped.
    """

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.cell: Picture | None = None
        self.handed: Any = None
        self.smear_picture: Picture | None = None
        self.smear: Any = None
        self._opened: dict[str, str] = {}
        self.given: Any = None
        self.batch: Any = None
        self.stopped = 0
        self._pictures: dict[str, tuple[float, Picture]] = {}

    def ask(self, tab: str) -> int:
        """Begin a question, which stops the one before."""
        self.asked[tab] = self.asked.get(tab, 0) + 1
        return self.asked[tab]

    def is_newest(self, tab: str, number: int) -> bool:
        """Whether nothing was asked since."""
        return self.asked.get(tab) == number

    def wanted(self, tab: str, chosen: Chosen) -> int | None:
        """Number of the cell that the page's address opens from what was chosen, once; None for none."""
        _, _, number = chosen.example.partition("-open-")
        is_new = self._opened.get(tab) != chosen.example
        self._opened[tab] = chosen.example
        return int(number) - 1 if number.isdecimal() and is_new else None

    def keep(self, key: str, picture: Picture) -> None:
        """Keep a picture, and forget the oldest beyond the limit."""
        self._pictures.pop(key, None)
        self._pictures[key] = (time.monotonic(), picture)
        while len(self._pictures) > 1 and sum(kept.bytes for _, kept in self._pictures.values()) > MAX_KEPT:
            del self._pictures[next(iter(self._pictures))]

    def picture(self, key: str) -> Picture | None:
        """A picture that was kept; None where there is none."""
        for name in [*self._pictures]:
            if time.monotonic() - self._pictures[name][0] > KEPT_SECONDS:
                del self._pictures[name]
        return self._pictures[key][1] if key in self._pictures else None

    def read(self, upload: Upload, limit: Limit) -> Picture:
        """A picture of an upload: as it was kept, or from its file, which is then deleted; errors as `read_picture`."""
        picture = self.picture(upload.path)
        if picture is None:
            picture = read_picture(upload, limit)
            self.keep(upload.path, picture)
        return picture
