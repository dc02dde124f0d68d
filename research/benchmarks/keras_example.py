"""What prior systems use: Keras's EfficientNetB3 and DenseNets, asked as inference.py asks all others.

Runs under the Python of another environment, which has TensorFlow and Pillow but not Leukoscope:

    python research/benchmarks/keras_example.py '{"network": "DenseNet121", "call": "predict", "image_size": 160, …}'

The weights are random, which costs as much time as any others.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from io import BytesIO
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from PIL import Image
from timing import System, run_turn


def main() -> None:
    """Take the turn that the command line describes."""
    turn = json.loads(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(turn["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(turn["threads"])
    run_turn(turn, lambda: _system(turn))


def _system(turn: dict[str, Any]) -> System:
    of_keras, size = tf.keras.applications, turn["image_size"]
    network = getattr(of_keras, turn["network"])(weights=None, input_shape=(size, size, 3), classes=turn["classes"])
    # EfficientNet's network scales and standardises by itself.
    module = of_keras.densenet if turn["network"].startswith("DenseNet") else of_keras.efficientnet
    scale = module.preprocess_input

    def framed(file: BytesIO | str) -> np.ndarray:
        picture = Image.open(file).convert("RGB")
        kept = turn["crop_pct"] * min(picture.size)
        left, top = (picture.width - kept) / 2, (picture.height - kept) / 2
        box = (left, top, left + kept, top + kept)
        return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box), np.float32)

    def answers(files: Sequence[BytesIO | str], batch_size: int) -> np.ndarray:
        pixels = scale(np.stack([framed(file) for file in files]))
        if turn["call"] == "predict":
            return network.predict(pixels, batch_size=batch_size, verbose=0)
        batches = range(0, len(pixels), batch_size)
        return np.concatenate([network(pixels[k : k + batch_size], training=False).numpy() for k in batches])

    return System(one=lambda file: answers([BytesIO(file)], 1)[0].tolist(), many=answers)


if __name__ == "__main__":
    main()
