"""The systems that inference.py compares, each loaded and asked as its users would.

    python research/benchmarks/inference_systems.py '{"system": "pipeline", "release": DIR, …}'

is one turn of one of them; Keras has a script of its own, keras_example.py, because TensorFlow lives elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import System, run_turn

# The last feature map, where our own Grad-CAM looks as well.
_LAST_LAYERS = dict.fromkeys(("tf_efficientnet_b3", "tf_efficientnet_lite2"), "bn2") | dict.fromkeys(
    ("densenet121", "densenet169", "densenet201"), "features.norm5"
)


def main() -> None:
    """Take the turn that the command line describes."""
    turn = json.loads(sys.argv[1])
    run_turn(turn, lambda: SYSTEMS[turn["system"]](turn))


def _leukoscope(turn: dict[str, Any]) -> System:
    from leukoscope.data.images import open_bytes
    from leukoscope.inference.predictor import Predictor

    predictor = Predictor.from_pretrained(
        turn["release"], backend=turn["backend"], device=turn["device"], precision=turn["precision"]
    )

    return System(
        one=lambda file: list(predictor(open_bytes(file, "cell")).probabilities.values()),
        many=lambda paths, batch_size: list(predictor.iter_predictions(paths, batch_size=batch_size)),
        explained=lambda file: predictor(open_bytes(file, "cell"), explain=True, method="evidence"),
        views=lambda file: predictor(open_bytes(file, "cell"), tta=True),
    )


def _pipeline(turn: dict[str, Any]) -> System:
    from transformers import pipeline

    pipe = pipeline("image-classification", model=turn["release"], device=turn["device"])
    labels = _labels(turn)

    def one(file: bytes) -> list[float]:
        scores = {row["label"]: row["score"] for row in pipe(Image.open(BytesIO(file)))}
        return [scores[label] for label in labels]

    return System(
        one=one,
        many=lambda paths, batch_size: pipe(list(paths), batch_size=batch_size),
        views=lambda file: pipe(_eight_views(file), batch_size=8),
    )


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
        views=lambda file: answers(_eight_views(file), 8),
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


def _eight_views(file: bytes) -> list[Image.Image]:
    """A picture turned by quarters, and mirrored."""
    picture = Image.open(BytesIO(file)).convert("RGB")
    turned = [np.rot90(np.asarray(picture), quarters) for quarters in range(4)]
    return [Image.fromarray(np.ascontiguousarray(view)) for pixels in turned for view in (pixels, pixels[:, ::-1])]


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
