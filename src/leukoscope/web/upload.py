"""A visitor's files, read once and then deleted.

Gradio 6.31 hands a component the path that the request names. It refuses one outside its upload folder where the
file's description has `meta`, and opens any path of the machine where it has not. `uploaded` is the one check: a
component here gives its handler nothing but a file of an upload's own folder, whose random name only its sender knows,
and hands it over untouched: a bad picture is refused in the same words as everywhere else in Leukoscope.

The first part builds on internals of Gradio, which is therefore bounded in pyproject.toml: `web.require_gradio` checks
the installed version, and `keep_uploads_apart` that the internals are there. The second part, `uploaded` and below,
uses the name of the upload folder only.
"""

from __future__ import annotations

import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import gradio as gr
from gradio import route_utils
from gradio.data_classes import FileData, ListFiles
from gradio.utils import get_upload_folder
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.data.images import UnreadableImage, check_header, open_image

MAX_BYTES = 20 * 1024 * 1024
NO_UPLOAD = "This is no upload of yours, or it was deleted; upload it again."
OWN_FOLDER = "upload-"  # how the names of folders of uploads begin
ANSWER_FOLDER = "answer-"


class Limit(NamedTuple):
    """How many pixels a picture may have in a session's memory, what it should show, and how to shrink a larger one."""

    pixels: int
    shows: str
    remedy: str


# A crop of one cell is below 1 megapixel and a microscope's whole frame about 5.
CELL_LIMIT = Limit(8_000_000, "one cell", "crop it to the cell")
FIELD_LIMIT = Limit(16_000_000, "a field of view", "cut it into parts")


class _Paths(set[str]):
    """Paths of files that Gradio deletes once they are old, by a thread that would end where one is added meanwhile."""

    def __iter__(self) -> Iterator[str]:
        self.difference_update([path for path in set(self) if not Path(path).exists()])
        return iter(set(self))


class _OwnFolder(route_utils.GradioUploadFile):
    """An upload in a folder of its own; in Gradio's, named by the content, one visitor would delete another's file."""

    begun: ClassVar[set[str]] = set()  # paths of uploads, so that one which breaks off is deleted in time too

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        name = OWN_FOLDER + secrets.token_hex(16)
        self.sha = SimpleNamespace(update=lambda content: None, hexdigest=lambda: name)  # type: ignore[assignment]
        self.begun.add(str(self.file.name))


def keep_uploads_apart(demo: gr.Blocks) -> None:
    """Let every upload to this process have a folder of its own, and the demo, once built, delete old uploads.

    Raises:
        LeukoscopeError: the installed Gradio has not what this file builds on.
    """
    missing = [name for name in ("upload_file_set", "temp_file_sets", "preprocess_data") if not hasattr(demo, name)]
    if missing or not hasattr(route_utils, "GradioUploadFile"):
        raise LeukoscopeError(
            f"gradio {gr.__version__} has no {(*missing, 'GradioUploadFile')[0]}, on which uploads build; install "
            "another version: pip install 'gradio>=6.0,<7'"
        )
    _OwnFolder.begun = demo.upload_file_set = _Paths()
    for block in demo.blocks.values():
        block.temp_files = _Paths(block.temp_files)
    demo.temp_file_sets = [demo.upload_file_set, *(block.temp_files for block in demo.blocks.values())]
    route_utils.GradioUploadFile = _OwnFolder  # type: ignore[misc]


def cell_upload(**options: Any) -> gr.Image:
    """An image input (drop, paste or choose) that gives its handler the path of the file exactly as it was sent.

    Its preprocessing is replaced on the one component, as Gradio writes a stub file into the source tree for every
    subclass of one. Its properties must therefore never be updated: Gradio would make it anew.
    """
    upload = gr.Image(type="filepath", image_mode=None, **options)
    upload.preprocess = lambda payload: uploaded(payload.path) if payload else None  # type: ignore
    _keep_downloads_apart(upload)
    upload.example_payload = lambda: {"path": "cell.png", "meta": {"_type": "gradio.FileData"}}  # type: ignore[method-assign]
    upload.example_value = lambda: "cell.png"  # type: ignore[method-assign]
    return upload


def files_upload(**options: Any) -> gr.File:
    """An input of many files that gives its handler their paths exactly as they were sent."""

    def paths_as_sent(payload: ListFiles | FileData | None) -> list[str] | None:
        if not payload:
            return None
        files = payload.root if isinstance(payload, ListFiles) else [payload]
        return [uploaded(file.path) for file in files] or None

    upload = gr.File(file_count="multiple", **options)
    upload.preprocess = paths_as_sent  # type: ignore[method-assign]
    _keep_downloads_apart(upload)
    return upload


def _keep_downloads_apart(upload: gr.components.Component) -> None:
    """Let a component's download be an upload, too: Gradio names its folder by the address, which others may know."""
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


def uploaded(path: str) -> str:
    """Return the path if it is an upload that is still there, or a picture that an assistant sent.

    The folder of an upload has a random name, that of an assistant's picture the hash of its content: nobody else knows
    them. No other path is looked at: the answer must not tell what lies on this machine.

    Raises:
        gradio.Error: anything else, always in the same words.
    """
    with suppress(OSError, ValueError):  # a name that is too long or holds a zero byte
        file = Path(path)
        cache = Path(get_upload_folder())
        is_random = re.fullmatch(rf"{OWN_FOLDER}[0-9a-f]{{32}}|[0-9a-f]{{64}}", file.parent.name)
        is_own = is_random and file.parent.parent in (cache, cache.resolve())
        # Resolved, the path of a link is another one; a device or a pipe is no regular file.
        if is_own and file.resolve() == file.parent.parent.resolve() / file.parent.name / file.name and file.is_file():
            return path
    raise gr.Error(NO_UPLOAD, title="This did not work", print_exception=False)


def read_upload(path: str | Path | None, limit: Limit = CELL_LIMIT) -> tuple[Image.Image, str]:
    """An uploaded picture, upright and fully in memory, and its file name; the file is deleted in any case.

    It is RGB, or RGBA where parts of it are transparent.

    Raises:
        UnreadableImage: nothing sent, over 20 MB or the limit, or for any reason of `open_image`.
    """
    if not path:
        raise UnreadableImage("image: no picture was sent; give one image file")
    file = Path(path)
    name = file_name(str(path))
    with deleted_afterwards([path]):
        try:
            if file.is_file() and file.stat().st_size > MAX_BYTES:
                raise UnreadableImage(f"{name}: is over {MAX_BYTES // 2**20} MB; {limit.remedy}")
            width, height = check_header(file)
            if width * height > limit.pixels:
                raise UnreadableImage(
                    f"{name}: is {width}×{height} pixels, more than the {limit.pixels // 1_000_000} megapixels "
                    f"{limit.shows} may take here; {limit.remedy}"
                )
            return open_image(file, ground=None), name
        except UnreadableImage as error:
            # The cache's folders mean nothing to a visitor.
            raise UnreadableImage(str(error).replace(str(path), name)) from None


def file_name(path: str) -> str:
    """What a visitor called an upload."""
    return path.replace("\\", "/").rsplit("/", 1)[-1]


@contextmanager
def deleted_afterwards(paths: Iterable[str | Path]) -> Iterator[None]:
    """Delete these uploads at the end, whatever happens, as `delete_uploads` does."""
    try:
        yield
    finally:
        delete_uploads(paths)


def delete_uploads(paths: Iterable[str | Path]) -> None:
    """Delete these uploads and nothing else: a visitor may name any file."""
    cache = Path(get_upload_folder()).resolve()
    for path in paths:
        with suppress(OSError, ValueError):  # a path that no file can have
            file = Path(path).resolve()
            is_own = file.parent.name.startswith(OWN_FOLDER) and file.parent.parent == cache
            if is_own and file.is_file():
                file.unlink(missing_ok=True)
                with suppress(OSError):  # other files of the same upload
                    file.parent.rmdir()


@contextmanager
def gradio_errors() -> Iterator[None]:
    """Turn a `LeukoscopeError` into Gradio's own error, which is sent to the visitor without a traceback in the log."""
    try:
        yield
    except LeukoscopeError as error:
        raise gr.Error(str(error), print_exception=False) from None


def delete_old(kind: str, seconds: float) -> None:
    """Delete folders of this kind, `OWN_FOLDER` or `ANSWER_FOLDER`, that are older than this."""
    for folder in Path(get_upload_folder()).glob(f"{kind}*"):
        with suppress(OSError):  # another server deletes it just now
            if time.time() - folder.stat().st_mtime > seconds:
                shutil.rmtree(folder)
