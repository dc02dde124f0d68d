"""From a visitor's upload to pixels: read once, then deleted.

Gradio's own image component decodes before any handler runs and answers a broken file with a traceback; the one here
hands the file over untouched, so that a bad picture is refused in the same words as everywhere else in Leukoscope.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import gradio as gr
from gradio import route_utils
from gradio.data_classes import FileData, ImageData, ListFiles
from gradio.utils import get_upload_folder
from PIL import Image

from leukoscope.cells.images import UnreadableImage, check_header, open_image

MAX_BYTES = 20 * 1024 * 1024
OWN_FOLDER = "upload-"


class Limit(NamedTuple):
    """How many pixels a picture may have here, what it is meant to show, and what to do about a larger one.

    A session keeps its pictures in memory.
    """

    pixels: int
    shows: str
    remedy: str


# A crop of one cell is below 1 megapixel and a microscope's whole frame about 5.
CELL = Limit(8_000_000, "one cell", "crop it to the cell")
FIELD = Limit(16_000_000, "a field of view", "cut it into parts, or use the command `leukoscope field`")


class _OwnName:
    """Stands where Gradio hashes an upload to name its folder: a name that nobody shares and nobody can guess."""

    def __init__(self) -> None:
        self.name = OWN_FOLDER + secrets.token_hex(16)

    def update(self, content: bytes) -> None:
        """The content has no part in the name."""

    def hexdigest(self) -> str:
        return self.name


class _OwnFolder(route_utils.GradioUploadFile):
    """An upload whose folder nobody shares.

    Gradio names the folder by what the file holds: of two visitors who send the same picture, the one answered first
    would delete the other's.

    Attributes:
        begun: where the paths of uploads go as they begin, so that one which breaks off is deleted in time too.
    """

    begun: ClassVar[set[str]] = set()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sha = _OwnName()  # type: ignore[assignment]
        self.begun.add(str(self.file.name))


def keep_uploads_apart(demo: gr.Blocks) -> None:
    """Let every upload to this process have a folder of its own, which its handler may delete.

    Args:
        demo: deletes what is left of an upload once it is old.
    """
    _OwnFolder.begun = demo.upload_file_set
    route_utils.GradioUploadFile = _OwnFolder  # type: ignore[misc]


def cell_upload(**options: Any) -> gr.Image:
    """An image input (drop, paste or choose) that gives its handler the path of the file exactly as it was sent.

    Its preprocessing is replaced on the one component: Gradio writes a stub file into the source tree for every
    subclass of a component.
    """
    upload = gr.Image(type="filepath", image_mode=None, **options)
    upload.preprocess = _path_as_sent  # type: ignore[method-assign]
    upload.example_payload = lambda: {"path": "cell.png", "meta": {"_type": "gradio.FileData"}}  # type: ignore[method-assign]
    upload.example_value = lambda: "cell.png"  # type: ignore[method-assign]
    return upload


def files_upload(**options: Any) -> gr.File:
    """An input of many files that gives its handler their paths exactly as they were sent."""
    upload = gr.File(file_count="multiple", **options)
    upload.preprocess = _paths_as_sent  # type: ignore[method-assign]
    return upload


def _paths_as_sent(payload: ListFiles | FileData | None) -> list[str] | None:
    if payload is None:
        return None
    return [file.path for file in (payload.root if isinstance(payload, ListFiles) else [payload])]


def _path_as_sent(payload: ImageData | None) -> str | None:
    return payload.path if payload else None


def read_upload(path: str | Path | None, name: str = "", *, most: Limit = CELL) -> Image.Image:
    """Open an uploaded picture and delete the file, whether it could be used or not.

    Args:
        path: where Gradio put it; None where nothing was sent.
        name: what to call it in messages; defaults to its file name.
        most: how large it may be.

    Returns:
        An upright RGB picture, fully in memory.

    Raises:
        UnreadableImage: nothing sent, over 20 MB or the limit, or for any reason of `open_image`.
    """
    if path is None:
        raise UnreadableImage("image: no picture was sent; give one image file")
    file = Path(path)
    shown = name or file.name
    try:
        if file.is_file() and file.stat().st_size > MAX_BYTES:
            raise UnreadableImage(f"{shown}: is over {MAX_BYTES // 2**20} MB; {most.remedy}")
        width, height = check_header(file)
        if width * height > most.pixels:
            raise UnreadableImage(
                f"{shown}: is {width}×{height} pixels, more than the {most.pixels // 1_000_000} megapixels "
                f"{most.shows} may take here; {most.remedy}"
            )
        return open_image(file)
    except UnreadableImage as error:
        # The cache's folders mean nothing to a visitor.
        raise UnreadableImage(str(error).replace(str(path), shown)) from None
    finally:
        forget(file)


def file_name(path: str | None) -> str:
    """What a visitor called an upload."""
    return (path or "").replace("\\", "/").rsplit("/", 1)[-1]


def forget(path: Path) -> None:
    """Delete an upload, and nothing else.

    The examples that everyone sees lie in the same cache, and a visitor may name one of them as if it were an upload.
    """
    file = path.resolve()
    folder = file.parent
    if folder.name.startswith(OWN_FOLDER) and folder.parent == Path(get_upload_folder()).resolve() and file.is_file():
        file.unlink(missing_ok=True)
        with suppress(OSError):  # other files of the same upload
            folder.rmdir()
