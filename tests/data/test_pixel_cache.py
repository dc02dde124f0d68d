"""Cells are decoded once, under a key that no other pixels share, and never half."""

from __future__ import annotations

import errno
import inspect
import mmap
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image, features

from leukoscope import LeukoscopeError
from leukoscope.data import pixel_cache
from leukoscope.data.cells import LoadedCells, image_column
from leukoscope.data.images import cell_area, open_image, pixel_hash
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, PixelRows, frame_cells, new_array, read_rows
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.registry import dataset_info
from leukoscope.files import cache_root

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


def _files() -> list[str]:
    return sorted(path.name for path in cache_root().glob("*cells-*"))


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
    decode = pixel_cache._decode_to

    def replaced(*given: Any) -> dict[str, Any]:
        found = decode(*given)
        Image.new("RGB", (24, 30)).save(folder / "blast" / "3.png")
        return found

    monkeypatch.setattr(pixel_cache, "_decode_to", replaced)
    with pytest.raises(LeukoscopeError, match=r"3\.png: was replaced while the cells were decoded; start again$"):
        framed(cells)
    assert _files() == []


def test_cells_are_decoded_anew_only_when_what_opens_or_frames_them_changes(
    cells: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    framed(cells)
    before = len(_files())
    digest = pixel_cache.decoding_digest.__wrapped__
    first = digest()
    assert digest() == first == pixel_cache.decoding_digest()
    read = inspect.getsource
    with monkeypatch.context() as patch:
        patch.setattr(inspect, "getsource", lambda code: read(code).replace("exif_transpose", "rotate"))
        assert digest() != first
    with monkeypatch.context() as patch:
        patch.setattr(features, "version", lambda name: "another")
        assert digest() != first
    monkeypatch.setattr(pixel_cache, "decoding_digest", lambda: "another")
    framed(cells)
    assert len(_files()) == 2 * before


@pytest.mark.parametrize(
    ("preprocessing", "fingerprint", "rows"),
    [
        (Preprocessing(17, 0.8), "data", 6),
        (Preprocessing(16, 0.9), "data", 6),
        (Preprocessing(16, 0.8, "bilinear"), "data", 6),
        (SMALL, "other data", 6),
        (SMALL, "data", 5),
    ],
    ids=["size", "crop", "interpolation", "data", "rows"],
)
def test_whatever_changes_the_pixels_has_a_cache_of_its_own(
    cells: datasets.Dataset, preprocessing: Preprocessing, fingerprint: str, rows: int
) -> None:
    framed(cells)
    before = len(_files())
    pixels = framed(cells.select(range(rows)), preprocessing, fingerprint).pixels
    assert len(_files()) == 2 * before
    assert pixels.shape[:2] == (rows, preprocessing.image_size)


@pytest.mark.parametrize("share", [0, 0.5])
@pytest.mark.parametrize("suffix", ["cells-*.npy", "cells-*.json"])
def test_a_cache_that_was_cut_short_is_made_again(cells: datasets.Dataset, suffix: str, share: float) -> None:
    first = np.array(framed(cells).pixels)
    (file,) = cache_root().glob(suffix)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert np.array_equal(framed(cells).pixels, first)


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
    rows = image_column([{"bytes": content, "path": None} for content in contents])
    for name, values in {"label": [0] * len(rows), "subject": [""] * len(rows)}.items():
        rows = rows.add_column(name, values)
    return rows.add_column("cell_id", [f"c{number}" for number in range(len(rows))])


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def test_pictures_inside_the_data_set_are_decoded_and_their_damage_named_by_cell() -> None:
    whole = _png(Image.new("RGB", (20, 20), (200, 100, 50)))
    noise = _png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)))
    found = framed(_encoded(whole, b"no picture", noise[:1500]))
    assert (found.pixels[0] == (200, 100, 50)).all()
    no_picture, cut = found.data.unreadable
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


@pytest.mark.parametrize("writing", ["os.posix_fallocate", "leukoscope.data.pixel_cache.write_atomic"])
def test_a_disk_that_fills_while_cells_are_decoded_is_one_error_and_leaves_nothing(
    cells: datasets.Dataset, monkeypatch: pytest.MonkeyPatch, writing: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, full)
    with pytest.raises(LeukoscopeError, match=r"cannot keep the decoded cells there \(No space left on device; "):
        framed(cells)
    assert _files() == []


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, None])
def test_where_the_system_allocates_nothing_the_space_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def unknown(*_: int) -> None:
        raise OSError(number, "") if number else AttributeError

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    array = new_array(tmp_path / "a.npy", np.uint8, (3, 1_000_000))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= array.nbytes
    array[:] = 7
    array.flush()
    assert (np.load(tmp_path / "a.npy") == 7).all()


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

    def tracked(items: Iterable[Any], *_: object) -> Iterator[Any]:
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
