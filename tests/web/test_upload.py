"""An upload is read once and deleted, whatever it held."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import gradio
import pytest
from gradio import route_utils
from gradio.data_classes import FileData
from gradio.processing_utils import async_move_files_to_cache
from PIL import Image

from leukoscope.data.images import UnreadableImage
from leukoscope.web.app import Endpoints
from leukoscope.web.export import png_answer
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.upload import ANSWER_FOLDER, OWN_FOLDER, cell_upload, delete_old, keep_uploads_apart, read_upload
from zips import png


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / f"{OWN_FOLDER}1"
    folder.mkdir(parents=True)
    return folder


def test_a_cell_is_read_and_its_file_deleted_unless_it_lies_outside_the_cache(cache: Path, tmp_path: Path) -> None:
    for path in (cache / "cell.bmp", tmp_path / "mine.png"):
        Image.new("RGB", (40, 40)).save(path)
        assert read_upload(path)[0].size == (40, 40)
    assert not cache.exists() and (tmp_path / "mine.png").exists()


def test_every_upload_has_a_folder_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_utils, "GradioUploadFile", route_utils.GradioUploadFile)
    demo = gradio.Blocks()
    keep_uploads_apart(demo)
    files = [route_utils.GradioUploadFile((cache / name).open("wb")) for name in "ab"]
    for file in files:
        file.sha.update(b"the same picture")
    folders = [file.sha.hexdigest() for file in files]
    assert folders[0] != folders[1]
    assert all(folder.startswith(OWN_FOLDER) for folder in folders)
    # Neither was ever finished.
    route_utils.delete_files_created_by_app(demo, age=None)
    assert not list(cache.iterdir())


def test_paths_of_uploads_come_and_go_while_gradio_deletes_old_files(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_utils, "GradioUploadFile", route_utils.GradioUploadFile)
    with gradio.Blocks() as demo:
        gradio.Image()
    keep_uploads_apart(demo)
    (cache / "new.png").write_bytes(b"1")
    for paths in demo.temp_file_sets:
        paths |= {str(cache / "new.png"), str(cache / "deleted.png")}
        for number, _ in enumerate(paths):
            paths.add(str(cache / f"{number}.png"))
    route_utils.delete_files_created_by_app(demo, age=3600)
    assert len(demo.temp_file_sets) >= 2
    assert [set(paths) for paths in demo.temp_file_sets] == [{str(cache / "new.png")}] * len(demo.temp_file_sets)


def test_what_a_killed_server_left_is_deleted_once_it_is_old(cache: Path) -> None:
    old, others = cache.with_name(f"{OWN_FOLDER}2"), cache.with_name("of-another-app")
    for folder in (old, others):
        folder.mkdir()
        (folder / "cell.png").write_bytes(b"1")
        os.utime(folder, (time.time() - 7300,) * 2)
    delete_old(OWN_FOLDER, 7200)
    assert sorted(folder.name for folder in cache.parent.iterdir()) == ["of-another-app", cache.name]


def test_a_picture_that_a_program_was_sent_is_deleted_minutes_later(cache: Path) -> None:
    answers = [Path(png_answer(Image.new("RGB", (8, 8)))) for _ in range(2)]
    os.utime(answers[0].parent, (time.time() - 400,) * 2)
    delete_old(ANSWER_FOLDER, 300)
    assert [answer.exists() for answer in answers] == [False, True]


def test_a_picture_from_a_web_address_lies_where_nobody_else_looks(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def download(address: str, cache_dir: str) -> str:
        path = Path(cache_dir) / "named-by-the-address" / "cell.bmp"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40)).save(path)
        return str(path)

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", download)
    with gradio.Blocks():
        upload: Any = cell_upload()  # its preprocessing is replaced
    given = {"path": "https://example.org/cell.bmp", "meta": {"_type": "gradio.FileData"}}
    moved = asyncio.run(async_move_files_to_cache(given, upload, check_in_upload_folder=True))
    path = upload.preprocess(FileData(**moved))
    assert read_upload(path)[0].size == (40, 40)
    assert not list(cache.parent.rglob("cell.bmp"))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("text.png", b"no picture", "text.png: is not an image; give one of BMP, PNG"),
        ("empty.png", b"", r"empty.png: the file is empty \(0 bytes\)"),
        ("long.bmp", b"BM" + bytes(20 * 2**20), "long.bmp: is over 20 MB; crop it to the cell"),
        ("wide.png", png(4000), "wide.png: is 4000×4000 pixels, more than the 8 megapixels one cell may take here"),
    ],
)
def test_a_bad_file_is_named_without_its_folder_and_deleted(
    cache: Path, name: str, content: bytes, problem: str
) -> None:
    (cache / name).write_bytes(content)
    with pytest.raises(UnreadableImage, match=f"^{problem}"):
        read_upload(cache / name)
    assert not (cache / name).exists()


@pytest.mark.parametrize(("model", "problem"), [("/etc", "'/etc' is no model name"), (" ", "No model is chosen")])
def test_a_bad_model_name_leaves_no_upload_behind(cache: Path, model: str, problem: str) -> None:
    Image.new("RGB", (40, 40)).save(cache / "cell.png")
    with pytest.raises(gradio.Error, match=f"^['\"]?{problem}"):
        Endpoints(ModelCache({"x": Path("x")})).predict(str(cache / "cell.png"), model)
    assert not (cache / "cell.png").exists()
    with pytest.raises(gradio.Error, match="image: no picture was sent; give one image file"):
        Endpoints(ModelCache({})).predict(None, model)


def test_where_no_model_is_named_the_first_one_is_asked(cache: Path, tiny_release: Path) -> None:
    Image.new("RGB", (40, 40)).save(cache / "cell.png")
    *_, text, _ = Endpoints(ModelCache({"tiny": tiny_release})).predict(str(cache / "cell.png"), None)
    assert "Model tiny, local files" in text
