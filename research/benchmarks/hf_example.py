"""Run Hugging Face's example script `run_image_classification_no_trainer.py` unchanged, offline and under a clock.

The script is the caller's own copy. What it takes from the network, or from versions of its libraries that are gone, is
replaced before it starts; each replacement is noted. Timed is what it does between `model.train()` and `model.eval()`.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def run_script(script: Path, argv: list[str], image_size: int) -> dict[str, Any]:
    """Run it.

    Args:
        argv: its flags.
        image_size: side of the square that it shall crop, for image processors that name none.

    Returns:
        "epoch_seconds": of the training side of each epoch; "adapted": what was replaced.
    """
    adapted: list[str] = []
    seconds: list[float] = []
    _without_network(adapted)
    _with_todays_libraries(adapted, image_size)
    _clocked(seconds)
    sys.argv = [str(script), *argv]
    runpy.run_path(str(script), run_name="__main__")
    return {"epoch_seconds": seconds, "adapted": adapted}


class _Accuracy:
    """What `evaluate.load("accuracy")` would download."""

    def __init__(self) -> None:
        self.right = self.seen = 0

    def add_batch(self, *, predictions: torch.Tensor, references: torch.Tensor) -> None:
        self.right += int((predictions == references).sum())
        self.seen += len(references)

    def compute(self) -> dict[str, float]:
        return {"accuracy": self.right / self.seen}


def _without_network(adapted: list[str]) -> None:
    import evaluate
    import transformers.utils

    utils: Any = transformers.utils
    evaluate.load = lambda name: _Accuracy()
    utils.send_example_telemetry = lambda *_, **__: None
    adapted += ["its accuracy is computed here instead of downloaded", "it sends no telemetry"]


def _with_todays_libraries(adapted: list[str], image_size: int) -> None:
    import datasets
    import huggingface_hub
    import transformers
    import transformers.utils

    transformers.utils.check_min_version = lambda version: None
    if not hasattr(huggingface_hub, "Repository"):
        # Only imported: it would be used to push.
        huggingface_hub.Repository = None
    load = _leaving_out(datasets.load_dataset, "trust_remote_code", "task", "cache_dir")
    # Older copies name a task, which renamed the column of labels.
    datasets.load_dataset = lambda *args, **kwargs: (
        load(*args, **kwargs).rename_column("label", "labels") if "task" in kwargs else load(*args, **kwargs)
    )
    network: Any = transformers.AutoModelForImageClassification
    network.from_pretrained = _leaving_out(network.from_pretrained, "from_tf")
    processor: Any = transformers.AutoImageProcessor
    processor.from_pretrained = _naming_size(processor.from_pretrained, image_size)
    adapted += [
        "the version of transformers it asks for is not checked",
        "arguments that today's datasets and transformers no longer take are left out",
        f"its image processor names a size of {image_size} px, mean and standard deviation, which a timm model's lacks",
    ]


def _leaving_out(function: Callable[..., Any], *names: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **{k: v for k, v in kwargs.items() if k not in names})


def _naming_size(load: Callable[..., Any], image_size: int) -> Callable[..., Any]:
    def loaded(*args: Any, **kwargs: Any) -> Any:
        processor = load(*args, **kwargs)
        config = getattr(processor, "data_config", None) or processor.pretrained_cfg
        processor.size = {"height": image_size, "width": image_size}
        processor.image_mean, processor.image_std = config["mean"], config["std"]
        return processor

    return loaded


def _clocked(seconds: list[float]) -> None:
    """Note how long the prepared network stays in training mode at a time."""
    from accelerate import Accelerator

    prepare = Accelerator.prepare

    def prepared(self: Accelerator, *objects: Any, **kwargs: Any) -> Any:
        ready = prepare(self, *objects, **kwargs)
        network = ready[0]
        train, evaluate, started = network.train, network.eval, []

        def training(mode: bool = True) -> torch.nn.Module:
            if mode:
                started.append(time.perf_counter())
            return train(mode)

        def evaluating() -> torch.nn.Module:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started.pop())
            network.train = train
            done = evaluate()
            network.train = training
            return done

        network.train, network.eval = training, evaluating
        return ready

    Accelerator.prepare = prepared
