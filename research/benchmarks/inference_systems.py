"""The systems that inference.py compares, each loaded and asked as its users would.

    python research/benchmarks/inference_systems.py '{"system": "pipeline", "release": DIR, …}'

is one turn of one of them, in a process of its own. It says when it has given its first answer, so that its caller can
time the start, and goes on to the measurements that are asked of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIRST_ANSWER = "first answer"
# The last feature map, where our own Grad-CAM looks as well.
_LAST_LAYERS = dict.fromkeys(("tf_efficientnet_b3", "tf_efficientnet_lite2"), "bn2") | dict.fromkeys(
    ("densenet121", "densenet169", "densenet201"), "features.norm5"
)


@dataclass(frozen=True)
class System:
    """What a system can be asked; None for what it does not offer.

    Attributes:
        one: a picture file's bytes → probabilities of the classes, in the release's order.
        many: paths of files and a batch size → answers.
        explained: a file's bytes → an answer and a Grad-CAM.
    """

    one: Callable[[bytes], Sequence[float]]
    many: Callable[[Sequence[str], int], object] | None = None
    explained: Callable[[bytes], object] | None = None


def main() -> None:
    """Take the turn that the command line describes."""
    turn = json.loads(sys.argv[1])
    _run_turn(turn, lambda: SYSTEMS[turn["system"]](turn))


def _run_turn(turn: dict[str, Any], make: Callable[[], System]) -> None:
    """Load a system, answer once, then measure what the turn asks for and write its "result" file.

    Args:
        turn: "pictures", a folder of image files; "result", a file; "first_only", to stop after the first answer;
            "repeats", timed calls a measure; "batch_sizes", to be tried on all pictures.
    """
    system = make()
    paths = [str(path) for path in sorted(Path(turn["pictures"]).iterdir())]
    first = _shares(system, Path(paths[0]).read_bytes())
    print(FIRST_ANSWER, flush=True)
    if turn["first_only"]:
        return
    files = [Path(path).read_bytes() for path in paths]
    repeats = turn["repeats"]
    result: dict[str, Any] = {"probabilities": [first, *(_shares(system, file) for file in files[1:4])]}
    for name, call in (("one", system.one), ("explained", system.explained)):
        if call is not None:
            result[name] = _seconds_each(call, files, repeats)
    if system.many is not None:
        result["many"] = {str(size): _cells_a_second(system.many, paths, size) for size in turn["batch_sizes"]}
    Path(turn["result"]).write_text(json.dumps(result), encoding="utf-8")


def _shares(system: System, file: bytes) -> list[float]:
    return [float(share) for share in system.one(file)]


def _seconds_each(call: Callable[[bytes], object], files: Sequence[bytes], repeats: int) -> list[float]:
    """Seconds of single calls, file after file, once they are warm."""
    for file in files[:2]:
        call(file)
    seconds = []
    for number in range(repeats):
        started = time.perf_counter()
        call(files[number % len(files)])
        seconds.append(time.perf_counter() - started)
    return seconds


def _cells_a_second(many: Callable[[Sequence[str], int], object], paths: Sequence[str], size: int) -> float:
    many(paths[:size], size)
    started = time.perf_counter()
    many(paths, size)
    return len(paths) / (time.perf_counter() - started)


def _leukoscope(turn: dict[str, Any]) -> System:
    from leukoscope.data.images import open_bytes
    from leukoscope.inference.predictor import Predictor

    predictor = Predictor.from_pretrained(turn["release"], device=turn["device"])
    return System(
        one=lambda file: list(predictor(open_bytes(file, "cell")).probabilities.values()),
        many=lambda paths, batch_size: list(predictor.iter_predictions(paths, batch_size=batch_size)),
        explained=lambda file: predictor(open_bytes(file, "cell"), explain=True),
    )


def _pipeline(turn: dict[str, Any]) -> System:
    from transformers import pipeline

    pipe = pipeline("image-classification", model=turn["release"], device=turn["device"])
    labels = _labels(turn)

    def one(file: bytes) -> list[float]:
        scores = {row["label"]: row["score"] for row in pipe(Image.open(BytesIO(file)))}
        return [scores[label] for label in labels]

    return System(one=one, many=lambda paths, batch_size: pipe(list(paths), batch_size=batch_size))


def _timm(turn: dict[str, Any]) -> System:
    import torch

    network, transform = _plain_network(turn)

    @torch.inference_mode()
    def answers(pictures: Sequence[Image.Image], batch_size: int) -> list[list[float]]:
        shares: list[list[float]] = []
        for first in range(0, len(pictures), batch_size):
            batch = torch.stack([transform(picture) for picture in pictures[first : first + batch_size]])
            shares += network(batch.to(turn["device"])).softmax(dim=1).tolist()
        return shares

    return System(
        one=lambda file: answers([Image.open(BytesIO(file)).convert("RGB")], 1)[0],
        many=lambda paths, batch_size: answers([Image.open(path).convert("RGB") for path in paths], batch_size),
    )


def _grad_cam(turn: dict[str, Any]) -> System:
    from pytorch_grad_cam import GradCAM

    architecture = turn["architecture"]
    if architecture not in _LAST_LAYERS:
        sys.exit(f"{architecture}: the layer of its Grad-CAM is not known; name it in _LAST_LAYERS of {__file__}")
    network, transform = _plain_network(turn)
    cam = GradCAM(network, [network.get_submodule(_LAST_LAYERS[architecture])])

    def explained(file: bytes) -> tuple[np.ndarray, list[float]]:
        """The map of the most probable class; every other one would cost as much again."""
        heat = cam(transform(Image.open(BytesIO(file)).convert("RGB"))[None].to(turn["device"]), targets=None)
        return heat, cam.outputs.detach().softmax(dim=1)[0].tolist()

    return System(one=lambda file: explained(file)[1], explained=explained)


def _plain_network(turn: dict[str, Any]) -> tuple[Any, Callable[[Image.Image], Any]]:
    """The release's network and preprocessing as timm alone gives them."""
    import timm
    from timm.data import create_transform, resolve_data_config

    network = timm.create_model(f"local-dir:{turn['release']}", pretrained=True).eval().to(turn["device"])
    return network, create_transform(**resolve_data_config({}, model=network))


def _labels(turn: dict[str, Any]) -> list[str]:
    return json.loads((Path(turn["release"]) / "config.json").read_text(encoding="utf-8"))["label_names"]


SYSTEMS: dict[str, Callable[[dict[str, Any]], System]] = {
    "leukoscope": _leukoscope,
    "pipeline": _pipeline,
    "timm": _timm,
    "pytorch-grad-cam": _grad_cam,
}

if __name__ == "__main__":
    main()
