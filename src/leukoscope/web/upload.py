"""A visitor's files: uploads, read once and then deleted, and what is made for the visitor to save.

Gradio 6.31 hands a component the path that the request names. It refuses one outside its upload folder where the
file's description has `meta`, and opens any path of the machine where it has not. `uploaded` is the one check: a
component here gives its handler nothing but a file of an upload's own folder, whose random name only its sender knows.

Gradio's own image component decodes before any handler runs and shows a traceback for a broken file; the one here
hands the file over untouched, so that a bad picture is refused in the same words as everywhere else in Leukoscope.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import gradio as gr
from gradio import route_utils
from gradio.data_classes import FileData, ListFiles
from gradio.utils import get_upload_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.data.images import UnreadableImage, check_header, open_image
from leukoscope.reports.formatting import encoded

MAX_BYTES = 20 * 1024 * 1024
NO_UPLOAD = "This is no upload of yours, or it was deleted; upload it again."
OWN_FOLDER, ANSWER_FOLDER = "upload-", "answer-"


class Limit(NamedTuple):
    """How many pixels a picture may have here, what it is meant to show, and what to do about a larger one.

    A session keeps its pictures in memory.
    """

    pixels: int
    shows: str
    remedy: str


# A crop of one cell is below 1 megapixel and a microscope's whole frame about 5.
CELL = Limit(8_000_000, "one cell", "crop it to the cell")
FIELD = Limit(16_000_000, "a field of view", "cut it into parts")


class _OwnName:
    """Replaces the hash by which Gradio names an upload's folder: a random name, unique and not guessable."""

    def __init__(self) -> None:
        self.name = OWN_FOLDER + secrets.token_hex(16)

    def update(self, content: bytes) -> None:
        """The content has no part in the name."""

    def hexdigest(self) -> str:
        return self.name


class _Paths(set[str]):
    """Paths of files that Gradio deletes once they are old.

    It goes through them in a thread, and would break off for good where one is added meanwhile; those of files that
    are no more it would keep.
    """

    def __iter__(self) -> Iterator[str]:
        self.difference_update([path for path in set(self) if not Path(path).exists()])
        return iter(set(self))


class _OwnFolder(route_utils.GradioUploadFile):
    """An upload in a folder of its own.

    Gradio names the folder by what the file holds: of two visitors who send the same picture, the one served first
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

    What is left of an upload is deleted by the demo, all of whose components stand, once it is old.
    """
    _OwnFolder.begun = demo.upload_file_set = _Paths()
    for block in demo.blocks.values():
        block.temp_files = _Paths(block.temp_files)
    demo.temp_file_sets = [demo.upload_file_set, *(block.temp_files for block in demo.blocks.values())]
    route_utils.GradioUploadFile = _OwnFolder  # type: ignore[misc]


def cell_upload(**options: Any) -> gr.Image:
    """An image input (drop, paste or choose) that gives its handler the path of the file exactly as it was sent.

    Its preprocessing is replaced on the one component: Gradio writes a stub file into the source tree for every
    subclass of a component. Its properties must therefore never be updated, for which Gradio would make it anew: what
    is written on it is Gradio's own, in the browser's language.
    """
    upload = gr.Image(type="filepath", image_mode=None, **options)
    upload.preprocess = lambda payload: uploaded(payload.path) if payload else None  # type: ignore
    _keep_downloads_apart(upload)
    upload.example_payload = lambda: {"path": "cell.png", "meta": {"_type": "gradio.FileData"}}  # type: ignore[method-assign]
    upload.example_value = lambda: "cell.png"  # type: ignore[method-assign]
    return upload


def files_upload(**options: Any) -> gr.File:
    """An input of many files that gives its handler their paths exactly as they were sent."""
    upload = gr.File(file_count="multiple", **options)
    upload.preprocess = _paths_as_sent  # type: ignore[method-assign]
    _keep_downloads_apart(upload)
    return upload


def _keep_downloads_apart(upload: gr.components.Component) -> None:
    """Let what a component downloads from a web address be an upload: in a folder of its own, deleted by its handler.

    Gradio names the folder by the address, which others may know.
    """
    to_cache = upload.async_move_resource_to_block_cache

    async def to_own_folder(source: str | Path | None) -> str | None:
        path = await to_cache(source)
        if path is None or not str(source).lower().startswith(("http://", "https://")):
            return path
        own = Path(get_upload_folder()) / f"{OWN_FOLDER}{secrets.token_hex(16)}" / file_name(path)
        own.parent.mkdir()
        upload.temp_files.add(str(own))
        return str(Path(path).replace(own))

    upload.async_move_resource_to_block_cache = to_own_folder  # type: ignore[method-assign, assignment]


def _paths_as_sent(payload: ListFiles | FileData | None) -> list[str] | None:
    if payload is None:
        return None
    return [uploaded(file.path) for file in (payload.root if isinstance(payload, ListFiles) else [payload])]


def uploaded(path: str) -> str:
    """The path itself, where it is that of an upload that is still there, or of a picture that an assistant sent.

    The folder of the first has a random name, that of the second the hash of its content: nobody else knows either. Of
    any other path nothing is looked at: the answer must not tell what lies on this machine.

    Raises:
        gradio.Error: anything else, always in the same words.
    """
    with suppress(OSError, ValueError):  # a name that is too long or holds a zero byte
        file, cache = Path(path), Path(get_upload_folder())
        own = re.fullmatch(rf"{OWN_FOLDER}[0-9a-f]{{32}}|[0-9a-f]{{64}}", file.parent.name) and file.parent.parent in (
            cache,
            cache.resolve(),
        )
        # Resolved, the path of a link is another one; a device or a pipe is no regular file.
        if own and file.resolve() == file.parent.parent.resolve() / file.parent.name / file.name and file.is_file():
            return path
    raise gr.Error(NO_UPLOAD, title="This did not work", print_exception=False)


def read_upload(path: str | Path | None, most: Limit = CELL) -> tuple[Image.Image, str]:
    """Open an uploaded picture as `open_upload` does, and delete the file, whether it could be used or not."""
    with deleted_afterwards([path] if path else []):
        return open_upload(path, most)


def open_upload(path: str | Path | None, most: Limit = CELL) -> tuple[Image.Image, str]:
    """Open an uploaded picture; None where nothing was sent.

    Returns:
        An upright RGB picture, fully in memory, and its file name.

    Raises:
        UnreadableImage: nothing sent, over 20 MB or the limit, or for any reason of `open_image`.
    """
    if path is None:
        raise UnreadableImage("image: no picture was sent; give one image file")
    file, name = Path(path), file_name(str(path))
    try:
        if file.is_file() and file.stat().st_size > MAX_BYTES:
            raise UnreadableImage(f"{name}: is over {MAX_BYTES // 2**20} MB; {most.remedy}")
        width, height = check_header(file)
        if width * height > most.pixels:
            raise UnreadableImage(
                f"{name}: is {width}×{height} pixels, more than the {most.pixels // 1_000_000} megapixels "
                f"{most.shows} may take here; {most.remedy}"
            )
        return open_image(file), name
    except UnreadableImage as error:
        # The cache's folders mean nothing to a visitor.
        raise UnreadableImage(str(error).replace(str(path), name)) from None


def file_name(path: str) -> str:
    """What a visitor called an upload."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


@contextmanager
def deleted_afterwards(paths: Iterable[str | Path]) -> Iterator[None]:
    """Delete these uploads at the end, whatever happens, and nothing else.

    The examples that everyone sees lie in the same cache, and a visitor may name one of them as if it were an upload.
    """
    try:
        yield
    finally:
        for path in paths:
            file = Path(path).resolve()
            own = file.parent.name.startswith(OWN_FOLDER) and file.parent.parent == Path(get_upload_folder()).resolve()
            if own and file.is_file():
                file.unlink(missing_ok=True)
                with suppress(OSError):  # other files of the same upload
                    file.parent.rmdir()


@contextmanager
def gradio_errors() -> Iterator[None]:
    """Turn what a program can fix into Gradio's own error, without a traceback."""
    try:
        yield
    except LeukoscopeError as error:
        raise gr.Error(str(error), print_exception=False) from None


def delete_old(kind: str, seconds: float) -> None:
    """Delete the files of this cache that are so old.

    Args:
        kind: `OWN_FOLDER`: what visitors sent to a server that was killed before it could delete it; or
            `ANSWER_FOLDER`: pictures that programs were sent.
    """
    for folder in Path(get_upload_folder()).glob(f"{kind}*"):
        with suppress(OSError):  # another server deletes it just now
            if time.time() - folder.stat().st_mtime > seconds:
                shutil.rmtree(folder)


@dataclass(frozen=True)
class File:
    """A file to be saved by the visitor: its name, media type and content."""

    name: str
    kind: str
    content: bytes


def png_file(name: str, image: Image.Image, *, title: str, model: str, revision: str, description: str = "") -> File:
    """A picture as a PNG that states in its texts which model it is from, and that it is for research only."""
    about = PngInfo()
    about.add_itxt("Title", title)
    if description:
        about.add_itxt("Description", description)
    about.add_itxt("Source", f"model {model}, revision {revision or 'of a local folder'}")
    about.add_itxt("Disclaimer", RESEARCH_NOTICE)
    about.add_text("Software", f"Leukoscope {__version__}")
    return File(name, "image/png", encoded(image, "PNG", pnginfo=about))


def safe_stem(name: str) -> str:
    """A name without its suffix as part of a file name, whatever a visitor called it; "" of none."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.rsplit(".", 1)[0])[:60]


def png_answer(image: Image.Image) -> str:
    """Write a picture as a PNG with the research notice, in a folder of its own of Gradio's cache, and give its path.

    Gradio sends it from there; `delete_old` deletes it. Its own files take three times as long to compress, and
    have the name of an equal answer's: writing one anew breaks off the download of whoever is being sent it.
    """
    about = PngInfo()
    about.add_text("Disclaimer", RESEARCH_NOTICE)
    path = Path(get_upload_folder()) / f"{ANSWER_FOLDER}{secrets.token_hex(16)}" / "image.png"
    try:
        path.parent.mkdir(parents=True)
        image.save(path, pnginfo=about, compress_level=1)
    except OSError:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise LeukoscopeError("the disk of this server is full; try again in a few minutes") from None
    return str(path)
