"""Cells are decoded once, under a key that no other pixels share, and never half."""

from __future__ import annotations

import errno
import mmap
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image, features

from leukoscope import LeukoscopeError
from leukoscope.cache import cache_root
from leukoscope.data import pixel_cache
from leukoscope.data.cells import CellRecord, LoadedCells, assemble, image_column
from leukoscope.data.images import cell_area, open_image, pixel_hash
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, PixelRows, frame_cells, read_rows
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.registry import dataset_info

SMALL = Preprocessing(16, 0.8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "cells"
    for number in range(6):
        path = root / ("blast" if number % 2 else "normal") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (30, 24, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def cells(folder: Path) -> datasets.Dataset:
    return load_cells("imagefolder", folder).train


def framed(cells: datasets.Dataset, preprocessing: Preprocessing = SMALL, fingerprint: str = "data") -> FramedCells:
    data = LoadedCells(dataset_info("imagefolder"), datasets.DatasetDict(train=cells), fingerprint)
    return frame_cells(data, preprocessing)


def _entries() -> list[Path]:
    return sorted(cache_root().glob("cells-*"))


def _files() -> list[Path]:
    """Files of decoded cells, but those that describe them."""
    return [file for folder in _entries() for file in folder.glob("*.npy*")]


def test_pixels_are_the_framed_pictures_in_row_order_and_decoded_once(
    folder: Path, cells: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [open_image(folder / f"{cell}.png") for cell in cells["cell_id"]]
    for _ in range(2):
        found = framed(cells)
        assert found.areas == pytest.approx([cell_area(np.asarray(picture)) for picture in pictures])
        assert found.hashes == [pixel_hash(picture) for picture in pictures]
        assert (found.pixels.dtype, found.data.unreadable) == (np.dtype(np.uint8), ())
        assert np.array_equal(found.pixels, [SMALL.frame(picture) for picture in pictures])
        monkeypatch.setattr(pixel_cache, "map_in_threads", None)
    some = np.array([4, 1])
    on_black = replace(found, data=replace(found.data, info=replace(found.data.info, background="black")))
    assert found.areas_of(some) is None and on_black.areas_of(some) == pytest.approx(found.areas[[4, 1]])
    assert found.hashes_of(some) == (found.hashes[4], found.hashes[1])


def test_a_copy_of_the_cells_is_decoded_no_second_time_and_its_damage_named_in_its_own_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = folder / "blast" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:900])
    frame_cells(load_cells("imagefolder", folder), SMALL)
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.setattr(pixel_cache, "_decode_to", None)
    framed = frame_cells(load_cells("imagefolder", copy), SMALL)
    (message,) = framed.data.unreadable
    assert message.startswith(f"{copy / 'blast' / '3.png'}: the image is damaged or cut short (")


def test_pictures_replaced_while_they_are_decoded_leave_no_cache(
    folder: Path, cells: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    each_picture = pixel_cache.each_picture

    def replaced(*arguments: Any, **ground: Any) -> Any:
        Image.new("RGB", (24, 30)).save(folder / "blast" / "3.png")
        return each_picture(*arguments, **ground)

    monkeypatch.setattr(pixel_cache, "each_picture", replaced)
    with pytest.raises(LeukoscopeError, match=r"3\.png: was replaced while the cells were decoded; start again$"):
        framed(cells)
    assert _files() == []


PIXELS_OF_VERSION = {1: "273c3cd45ed3c241"}


def test_what_changes_the_pixels_of_a_file_changes_the_version_too(tmp_path: Path) -> None:
    """Decoded cells are kept by `DECODING_VERSION`: with new pixels under an old version, old ones would be read."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 30, 4), dtype=np.uint8)
    pixels[:8, :, :3] = 4  # a background that is nearly black
    turned = Image.Exif()
    turned[274] = 6
    wide = rng.integers(0, 65_536, (30, 40), dtype=np.uint16)
    folder = tmp_path / "cells"
    for name in ("HEM", "ALL"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "ALL" / "1.png")
    Image.fromarray(pixels[..., :3]).save(folder / "ALL" / "2.tif", exif=turned)
    Image.fromarray(pixels[..., 0]).save(folder / "ALL" / "3.bmp")
    Image.fromarray(pixels[..., :3]).quantize(7).save(folder / "HEM" / "4.png", transparency=2)
    Image.fromarray(wide).save(folder / "HEM" / "5.png")
    Image.fromarray(pixels[..., :3]).convert("CMYK").save(folder / "HEM" / "6.tif")
    cells = frame_cells(load_cells("imagefolder", folder), SMALL)
    content = repr((cells.row_of, cells.pixels.tolist(), cells.hashes, cells.areas.tolist()))
    assert sha256(content.encode()).hexdigest()[:16] == PIXELS_OF_VERSION[pixel_cache.DECODING_VERSION], (
        "give DECODING_VERSION the next number, and write this digest here"
    )


def test_whatever_changes_the_pixels_has_a_cache_of_its_own(
    cells: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    for preprocessing, fingerprint, rows in (
        (SMALL, "data", 6),
        (Preprocessing(17, 0.8), "data", 6),
        (Preprocessing(16, 0.9), "data", 6),
        (Preprocessing(16, 0.8, "bilinear"), "data", 6),
        (SMALL, "other data", 6),
        (SMALL, "data", 5),
    ):
        before = len(_entries())
        for _ in range(2):
            pixels = framed(cells.select(range(rows)), preprocessing, fingerprint).pixels
            assert pixels.shape[:2] == (rows, preprocessing.image_size)
            assert len(_entries()) == before + 1
    monkeypatch.setattr(features, "version", lambda name: "another")
    framed(cells)
    assert len(_entries()) == before + 2
    monkeypatch.setattr(pixel_cache, "DECODING_VERSION", -1)
    framed(cells)
    assert len(_entries()) == before + 3


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "half zeros": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["pixels.npy", "facts.json"])
def test_a_damaged_cache_is_named_and_made_again(
    cells: datasets.Dataset, name: str, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the cells as zeros were once predicted with an accuracy of 1.000."""
    first = framed(cells)
    pixels = np.array(first.pixels)
    (folder,) = _entries()
    file = folder / name
    file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()
    again = framed(cells)
    assert np.array_equal(again.pixels, pixels) and again.hashes == first.hashes
    assert capsys.readouterr().err.splitlines()[0] == f"{file}: damaged; it is made again"


def test_cells_of_a_drive_that_is_gone_for_a_moment_are_not_kept_as_damaged(
    folder: Path, cells: datasets.Dataset
) -> None:
    folder.rename(folder.with_name("away"))
    with pytest.raises(LeukoscopeError, match="no such file; check the path"):
        framed(cells)
    folder.with_name("away").rename(folder)
    assert framed(cells).data.unreadable == ()


def test_an_offset_outside_the_file_is_damage_and_no_drive_that_is_gone(folder: Path) -> None:
    path = folder / "blast" / "9.tif"
    Image.new("RGB", (32, 32)).save(path)
    where_pixels_begin = struct.pack("<HHI", 273, 4, 1)
    head, tail = path.read_bytes().split(where_pixels_begin)
    path.write_bytes(head + struct.pack("<HHIi", 273, 9, 1, -5) + tail[4:])
    (message,) = framed(load_cells("imagefolder", folder).train).data.unreadable
    assert message.startswith(f"{path}: ")


def test_damaged_pictures_are_reported_by_cell_and_stay_black(folder: Path, cells: datasets.Dataset) -> None:
    path = folder / "blast" / "3.png"
    path.write_bytes(path.read_bytes()[:900])
    row = cells["cell_id"][:].index("blast/3")
    for _ in range(2):  # decoded, then from the cache
        found = framed(cells)
        (message,) = found.data.unreadable
        assert message.startswith(f"{path}: the image is damaged or cut short (")
        assert "blast/3" not in found.row_of and found.pixels[row].max() == 0
        assert all(found.pixels[other].max() > 0 for other in range(6) if other != row)


def _encoded(*contents: bytes) -> datasets.Dataset:
    """Rows that carry their pictures inside, as Hub data sets do."""
    records = [CellRecord(f"c{number}", "AB"[number % 2], "", "") for number in range(len(contents))]
    images = image_column([{"bytes": content, "path": None} for content in contents])
    return assemble(replace(dataset_info("imagefolder"), labels=("A", "B")), images, records, "cells").train


def test_pictures_inside_the_data_set_are_decoded_and_their_damage_named_by_cell() -> None:
    whole = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(whole, "png")
    framed_cells = framed(_encoded(whole.getvalue(), b"no picture", whole.getvalue()[:1500]))
    assert framed_cells.pixels[0].any() and not framed_cells.pixels[1:].any()
    no_picture, cut = framed_cells.data.unreadable
    assert no_picture == "cell c1: is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"
    assert cut.startswith("cell c2: the image is damaged or cut short (")


def test_a_cache_folder_that_cannot_be_written_or_is_too_small_is_refused_before_the_first_cell(
    cells: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing to a memory map on a full disk would end the process without a word."""
    said = r"cannot keep the decoded cells there \(No space left on device; 162000000 MB needed\)"
    with pytest.raises(LeukoscopeError, match=said):
        framed(cells, Preprocessing(3_000_000, 1.0))
    assert _files() == []
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(in_the_way / "cache"))
    with pytest.raises(LeukoscopeError) as refused:
        framed(cells)
    assert str(refused.value) == (
        f"{in_the_way / 'cache'}: cannot keep the decoded cells there (Not a directory; 0 MB needed); "
        "set LEUKOSCOPE_CACHE to another folder"
    )


@pytest.mark.parametrize("writing", ["leukoscope.data.pixel_cache.write_header", "leukoscope.cache.write_atomic"])
def test_a_disk_that_fills_while_cells_are_decoded_is_one_error_and_leaves_nothing(
    cells: datasets.Dataset, monkeypatch: pytest.MonkeyPatch, writing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, full)
    with pytest.raises(LeukoscopeError, match=r"cannot keep the decoded cells there \(No space left on device; "):
        framed(cells)
    assert _files() == []


def test_rows_of_the_pixels_are_read_as_an_array_of_them_would_be() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 4, 4, 3), dtype=np.uint8)
    rows = np.array([7, 2, 3, 8])
    seen, copied = PixelRows(pixels, rows), pixels[rows]
    assert len(seen) == 4 and np.array_equal(np.stack(list(seen)), copied)
    for index in (1, slice(1, 3), np.array([3, 0])):
        assert np.array_equal(seen[index], copied[index])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system keeps pages of a map until it needs room")
def test_as_many_cells_as_the_largest_public_set_has_are_kept_and_read_in_constant_memory(tmp_path: Path) -> None:
    """171,375 cells at 224 px are 26 GB; this file system stores what was written alone."""
    psutil = pytest.importorskip("psutil")
    held = psutil.Process().memory_info
    pixels = np.lib.format.open_memmap(tmp_path / "cells.npy", "w+", np.uint8, (171_375, 224, 224, 3))
    rows = np.random.default_rng(0).permutation(len(pixels))[:4_000]
    before, most = held().rss, 0
    for start in range(0, len(rows), 64):
        assert not read_rows(pixels, rows[start : start + 64]).any()
        most = max(most, held().rss)
    assert most - before < 100e6, "0.6 GB were read"

    picture = BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "bmp")
    cells, most = _encoded(*[picture.getvalue()] * 3_000), 0

    def tracked(items: Iterable[Any], *_: object, **__: object) -> Iterator[Any]:
        nonlocal most
        for item in items:
            most = max(most, held().rss)
            yield item

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("leukoscope.progress.track", tracked)
        before = held().rss
        assert framed(cells, Preprocessing(224, 1.0), "many").pixels.shape == (3_000, 224, 224, 3)
    assert most - before < 150e6, "0.45 GB were written"


def test_transparent_parts_are_framed_on_the_ground_of_the_cells_and_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(pixel_cache, "note", lambda text, err: notes.append(text))
    rgba = np.full((30, 24, 4), (255, 0, 0, 0), np.uint8)
    Image.fromarray(rgba).save(folder / "blast" / "3.png")
    for name, ground, colour in (
        ("imagefolder", (0, 0, 0), "black"),
        ("ball4", (246, 254, 252), "the colour of an empty slide"),
    ):
        data = load_cells("imagefolder", folder)
        data = replace(data, info=replace(data.info, name=name))
        for _ in range(2):  # decoded, then from the cache
            cells = frame_cells(data, SMALL)
            assert (cells.pixels[cells.row_of["blast/3"]] == ground).all()
            counted = f"1 of {len(cells.pixels)} pictures have transparent parts: these are read as {colour}"
            assert notes.pop() == counted and not notes
