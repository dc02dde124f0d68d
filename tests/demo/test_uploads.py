"""A visitor's files: one check of paths, limits, deletion, and what stays in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from asked import ROOT, png, sent
from leukoscope import DataError
from leukoscope.data.images import UnreadableImage
from leukoscope.demo import uploads
from leukoscope.demo.pictures import Picture
from leukoscope.demo.uploads import CELL_PIXELS, LOST, Chosen, Upload, Visit, as_chosen
from leukoscope.reports.words import encoded


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret", "", "lock", "x" * 5000, "a\0b", "https://x.org/a.png", None, 5]
)
def test_no_other_path_of_this_machine_is_opened_or_deleted(path: object, own_uploads: Path) -> None:
    (own_uploads / "lock").touch()
    secret = own_uploads.parent / "secret"
    secret.touch()
    (own_uploads / "link").symlink_to(secret)
    for other in (path, own_uploads / str(path), own_uploads / "link", own_uploads):
        with pytest.raises(DataError) as error:
            uploads.uploaded(other)
        assert str(error.value) == LOST
        uploads.delete(other)
    assert secret.exists() and (own_uploads / "lock").exists()


def test_an_upload_is_deleted_once_it_is_read_whether_or_not_it_is_a_picture(own_uploads: Path) -> None:
    upload = sent(png(), "P1/my cell.png")
    assert uploads.read_picture(upload, CELL_PIXELS).name == "my cell.png"
    broken = sent(b"no picture", "broken.png")
    with pytest.raises(UnreadableImage, match=r"^broken.png: ") as error:
        uploads.read_picture(broken, CELL_PIXELS)
    assert str(own_uploads) not in str(error.value)
    assert list(own_uploads.iterdir()) == []


def test_what_is_too_large_says_how_to_shrink_it(monkeypatch: pytest.MonkeyPatch) -> None:
    large = encoded(Image.new("1", (4000, 2001)), "PNG")
    with pytest.raises(UnreadableImage, match=r"is 4000×2001 pixels, more than the 8 megapixels allowed"):
        uploads.read_picture(sent(large), CELL_PIXELS)
    monkeypatch.setattr(uploads, "MAX_BYTES", 100)
    with pytest.raises(UnreadableImage, match="is over 0 MB; crop it, or save it smaller"):
        uploads.read_picture(sent(png()), CELL_PIXELS)


def test_a_visit_keeps_the_newest_pictures_within_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    visit = Visit()
    picture = Picture(Image.new("RGB", (100, 100)), "")
    monkeypatch.setattr(uploads, "MAX_KEPT", 2 * picture.bytes)
    for key in ("1", "2", "3"):
        visit.keep(key, picture)
    assert [visit.picture(key) is not None for key in ("1", "2", "3")] == [False, True, True]
    upload = sent(png())
    assert visit.read(upload, CELL_PIXELS) is visit.read(upload, CELL_PIXELS), "its file is gone, its pixels are not"
    later = time.monotonic() + uploads.KEPT_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert visit.picture("3") is None


def test_what_was_handed_over_and_is_gone_is_said() -> None:
    visit = Visit()
    with pytest.raises(DataError, match="This is no upload of yours"):
        visit.chosen("batch", {"example": "handed-1"})
    visit.handed["batch"] = Chosen("", (Upload("p", "a.zip"),))
    assert visit.chosen("batch", {"example": "handed-1"}) is visit.handed["batch"]


@pytest.mark.parametrize("value", [5, "x", [1], {"files": 5}, {"files": [5]}, {"files": [{}]}, {"files": "ab"}])
def test_what_is_nothing_that_a_strip_gives_is_refused_in_one_line(value: object) -> None:
    with pytest.raises(DataError, match=r"picture: expected \{"):
        as_chosen(value)


def test_several_files_and_zips_belong_into_a_batch() -> None:
    assert as_chosen(None) == Chosen("")
    one = as_chosen({"example": "", "files": [{"upload": "p", "name": "a.png"}]})
    assert one == Chosen("", (Upload("p", "a.png"),)) and not one.is_batch
    assert as_chosen({"files": [{"upload": "p", "name": "A.ZIP"}]}).is_batch and Chosen("", one.files * 2).is_batch


def test_files_go_after_their_time(own_uploads: Path) -> None:
    upload = Path(sent(png()).path)
    answer = Path(uploads.png_answer(Image.new("RGB", (8, 8))))
    now = time.time()
    uploads.delete_old(now + uploads.ANSWER_SECONDS + 61)
    assert upload.exists() and not answer.exists()
    uploads.delete_old(now + uploads.KEPT_SECONDS + 61)
    assert not upload.exists()


PROCESS = """
import os, sys
from leukoscope.demo import uploads
folder = uploads.own_folder()
(folder / "unread.png").touch()
print(folder, flush=True)
if sys.argv[1] == "dies":
    os._exit(9)
"""


def test_the_folder_of_a_process_goes_with_it_or_at_the_next_start(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "GRADIO_TEMP_DIR": str(tmp_path)}

    def run(how: str) -> Path:
        command = [sys.executable, "-c", PROCESS, how]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        return Path(ended.stdout.strip())

    dead = run("dies")
    assert (dead / "unread.png").exists()
    ended = run("ends")
    assert not dead.exists() and not ended.exists()
