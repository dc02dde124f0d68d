"""What a batch of large pictures takes is given back, and of two pictures decoded, one is predicted before the next."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from leukoscope.reports.formatting import encoded
from leukoscope.web.batch_files import BatchFile, read_parts
from zips import pack

# Resident megabytes before and after a batch; pages of 4 KiB in /proc/self/statm.
MEASURE = """
import sys
from functools import partial
from pathlib import Path
from leukoscope.web.batch import predict_files
from leukoscope.web.memory import limit_arenas
from leukoscope.web.model_cache import ModelCache

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

limit_arenas()
models = ModelCache({"release": Path(sys.argv[1])})
predict_files(models, [sys.argv[2]], "release")
before = resident()
kept = predict_files(models, [sys.argv[3]], "release")
print(before, resident(), max(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if "VmHWM" in line))
"""


def large(tint: int, side: int = 2700) -> bytes:
    """A picture of some 7 megapixels in a few kilobytes."""
    return encoded(Image.new("RGB", (side, side), (tint, 0, 90)), "PNG")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_batch_of_large_pictures_leaves_the_process_as_small_as_before(tiny_release: Path, tmp_path: Path) -> None:
    first = pack(tmp_path / "first.zip", {f"{tint}.png": large(tint, 300) for tint in range(4)})
    second = pack(tmp_path / "second.zip", {f"{tint}.png": large(tint) for tint in range(20)})
    command = (sys.executable, "-c", MEASURE, str(tiny_release), first, second)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    before, after, most = map(float, done.stdout.split())
    assert after - before < 100, f"{before:.0f} MB before, {after:.0f} MB after"
    assert most - before < 300, f"{before:.0f} MB before, {most:.0f} MB at most"


def test_large_pictures_are_decoded_one_at_a_time_and_small_ones_sixteen() -> None:
    def files(number: int, side: int) -> list[BatchFile]:
        return [BatchFile(f"{tint}.png", partial(large, tint, side)) for tint in range(number)]

    problems: list[str] = []
    assert [(len(images), done) for _, images, done in read_parts(files(3, 2820), problems)] == [(1, 1), (1, 2), (1, 3)]
    broken = BatchFile("broken.png", lambda: b"no picture")
    small = [(names, done) for names, _, done in read_parts([*files(17, 20), broken], problems)]
    assert [(len(names), done) for names, done in small] == [(16, 16), (1, 18)]
    assert len(problems) == 1 and problems[0].startswith("broken.png: is not an image")
    assert [done for _, _, done in read_parts([broken], problems)] == [1], "its progress is shown, too"
