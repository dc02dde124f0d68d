"""Which files of the source one prediction, one training of seconds and one click in the demo enter."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from pkgutil import walk_packages
from types import FrameType

from density import ROOT, SOURCE
from PIL import Image

from leukoscope.cli import app
from leukoscope.synthetic import draw_cell
from leukoscope.web.app import Endpoints
from leukoscope.web.model_cache import ModelCache

TASKS = ("one prediction", "one training", "one click")


def traced(call: Callable[[], object]) -> list[str]:
    """Run a call; the files of the source, imported before, that it entered on any thread, in order."""
    source = str(SOURCE)
    entered: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(source):
            entered[file.removeprefix(source)[1:]] = None

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(entered)


def traced_task(task: str, picture: str) -> list[str]:
    """`traced` of one of `TASKS`, in this process."""
    for module in walk_packages([str(SOURCE)], "leukoscope."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    release = ROOT / "model_card" / "leukoscope-densenet169-cnmc"
    if task == "one click":
        predict = Endpoints(ModelCache({"released": release})).predict
        predict(picture, "released")  # loads the model
        return traced(lambda: predict(picture, "released"))
    words = ["predict", str(release), picture]
    if task == "one training":
        small = "train --model_name_or_path test_resnet --from_scratch --image_size 32 --num_train_epochs 1"
        words = [*small.split(), "--output_dir", str(Path(picture).with_name("run"))]
    return traced(lambda: app(words, standalone_mode=False))


def print_traces() -> None:
    """Print the files that each task enters, traced in a process of its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as executor,
    ):
        os.environ |= {"LEUKOSCOPE_CACHE": folder, "LEUKOSCOPE_BACKEND": "torch"}  # a kept graph would shorten the path
        picture = str(Path(folder) / "cell.png")
        Image.fromarray(draw_cell("ALL", subject=1, cell=1, size=300, background="black").image).save(picture)
        for task in TASKS:
            entered = executor.submit(traced_task, task, picture).result()
            print(f"\n{task} enters {len(entered)} files:\n  " + "\n  ".join(entered))
