"""A visitor's files: in a folder of this process, read once and deleted; what was read stays in memory for two hours.

The folder of each upload has a random name that only its sender knows. Nothing else of this machine is looked at.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leukoscope import RESEARCH_NOTICE, DataError
from leukoscope.data.images import UnreadableImage, open_bytes
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
OWN_NAME = "own"  # what was given and is lost, as a strip and the page's address call it
HANDED_OVER = "handed"  # what was given as a cell, as the strip of another tab calls it
LOST_AT_RELOAD = "Your picture was not kept when the page was loaded again. Give it again, or choose an example."
LOST = "This is no upload of yours, or it was deleted; give it again."

_held: list[FileLock] = []  # of the folder of this process; a lock that is forgotten is released


# A crop of one cell is below 1 megapixel and a microscope's whole frame about 5.
CELL_PIXELS = 8_000_000
SMEAR_PIXELS = 16_000_000


class Upload(NamedTuple):
    """A file on its way to a model."""

    path: str
    name: str

    @property
    def is_zip(self) -> bool:
        """Whether its name says so."""
        return self.name.lower().endswith(".zip")


class Chosen(NamedTuple):
    """What a strip was given: the name of an example, or files."""

    example: str
    files: tuple[Upload, ...] = ()

    @property
    def is_batch(self) -> bool:
        """Whether the files belong into a batch: several, or a zip."""
        return len(self.files) > 1 or any(file.is_zip for file in self.files)


def own_folder() -> Path:
    """Make the folder of this process, which goes when the process ends, and delete those of dead processes.

    It is made in GRADIO_TEMP_DIR or the system's folder of temporary files.

    Raises:
        LeukoscopeError: it cannot be written there.
    """
    root = folder()
    with disk_errors(f"{root}: uploads cannot be written there", "set GRADIO_TEMP_DIR to a folder of yours"):
        root.mkdir(parents=True, exist_ok=True)
        for lock in root.glob(f"{FOLDER}*/lock"):
            # A process that lives holds its lock.
            with suppress(OSError, Timeout), FileLock(lock, timeout=0):
                shutil.rmtree(lock.parent)
        own = Path(tempfile.mkdtemp(prefix=FOLDER, dir=root))
        own_lock = FileLock(own / "lock")
        own_lock.acquire()
        _held.append(own_lock)
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(own)
    return own


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


def delete(path: object) -> None:
    """Delete this upload and nothing else: a visitor may name any file."""
    with suppress(OSError, DataError):
        file = uploaded(path)
        file.unlink()
        file.parent.rmdir()  # without other files of the same upload
        file.parent.parent.rmdir()


def read_picture(upload: Upload, max_pixels: int) -> Picture:
    """An uploaded picture, upright and fully in memory; its file is deleted in any case.

    Raises:
        UnreadableImage: over 20 MB or so many pixels, or for any reason of `open_bytes`.
        DataError: no upload.
    """
    file = uploaded(upload.path)
    name = file_name(upload.name or file.name)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UnreadableImage(f"{name}: is over {MAX_BYTES // 2**20} MB; crop it, or save it smaller")
        return Picture(open_bytes(file.read_bytes(), name, max_pixels=max_pixels, ground=None), name)
    finally:
        delete(file)


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
        asked: tab → number of its newest question: an older one stops.
        question: tab → what is asked about: a picture, or what a batch is read from.
        result: tab → what is known of it, whose cells can be opened.
        wanted: tab → number of the cell that the page's address opens there, until it is opened.
        given: what was chosen as a cell.
        handed: tab → what was given as a cell and belongs there.
        is_batch_stopped: whether the rest of the batch is left out.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.question: dict[str, Any] = {}
        self.result: dict[str, Any] = {}
        self.wanted: dict[str, int] = {}
        self.given = Chosen("")
        self.handed: dict[str, Chosen] = {}
        self.is_batch_stopped = False
        self._pictures: dict[str, tuple[float, Picture]] = {}

    def ask(self, tab: str) -> None:
        """Count a new question, and forget the one before."""
        self.asked[tab] += 1
        self.question.pop(tab, None)
        self.result.pop(tab, None)

    def chosen(self, tab: str, value: Any) -> Chosen:
        """What the strip of a tab was given, there or as a cell; errors as of `as_chosen`, or that it is lost."""
        chosen = as_chosen(value)
        if chosen.example == OWN_NAME:
            raise DataError(LOST_AT_RELOAD)
        if not chosen.example.startswith(HANDED_OVER):
            return chosen
        if tab not in self.handed:
            raise DataError(LOST)
        return self.handed[tab]

    def keep(self, key: str, picture: Picture) -> None:
        """Keep a picture, and forget the oldest beyond the limit."""
        self._pictures.pop(key, None)
        self._pictures[key] = (time.monotonic(), picture)
        while len(self._pictures) > 1 and sum(picture.bytes for _, picture in self._pictures.values()) > MAX_KEPT:
            del self._pictures[next(iter(self._pictures))]

    def picture(self, key: str) -> Picture | None:
        """A picture that was kept; None where there is none."""
        oldest = time.monotonic() - KEPT_SECONDS
        self._pictures = {name: timed for name, timed in self._pictures.items() if timed[0] > oldest}
        return self._pictures.get(key, (0, None))[1]

    def read(self, upload: Upload, max_pixels: int) -> Picture:
        """A picture of an upload: as it was kept, or from its file, which is then deleted; errors as `read_picture`."""
        picture = self.picture(upload.path)
        if picture is None:
            picture = read_picture(upload, max_pixels)
            self.keep(upload.path, picture)
        return picture
