"""Open and run any image classifier: our releases, or what `pipeline("image-classification")` of transformers opens.

A model that is no release is loaded from safetensors only, and its own code is never run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.runtime import AUTO, Runtime, gpu_or_cpu
from leukoscope.models.hub_download import KNOWN_CELLS, fetch_files, find_release
from leukoscope.models.release import CONFIG, read_release

# Keys of a release's config.json that a plain transformers model lacks.
_RELEASE_KEYS = {"architecture", "num_classes", "label_names", "pretrained_cfg"}


@dataclass(frozen=True)
class Classifier:
    """An image classifier, our own or another.

    Attributes:
        name, revision: folder or Hub id, and Hub commit ("" for a folder).
        labels: its own, in the order of its outputs.
        metrics: the release's metrics.json; {} for a model that is no release.
        predict: B upright RGB pictures → (B, T) probabilities of `labels`, rows sum to 1, and a release's B outcomes.
        folder: of a release; None for a model that is no release.
    """

    name: str
    revision: str
    labels: tuple[str, ...]
    metrics: Mapping[str, Any]
    predict: Callable[[Sequence[Image.Image]], tuple[np.ndarray, list[str] | None]]
    folder: Path | None = None


def open_classifier(model: str | Path, *, device: str = AUTO) -> Classifier:
    """Open a release or any image classifier of timm or transformers.

    Args:
        model: a folder, `owner/name` or `owner/name@revision`; a path that exists wins over a Hub id.
        device: a torch device such as "cpu" or "cuda"; "auto" takes the GPU where torch finds one, else the CPU.

    Raises:
        LeukoscopeError: no such model, no network and no cached copy, pickled weights only, a model that wants to run
            code of its own, or one that is no image classifier.
    """
    folder, name, revision = find_release(str(model), KNOWN_CELLS)
    if _is_release(folder):
        release = read_release(folder, name=name, revision=revision)
        predictor = Predictor(release, Runtime(device=device))

        def predict(pictures: Sequence[Image.Image]) -> tuple[np.ndarray, list[str]]:
            predictions = predictor(list(pictures), batch_size=len(pictures))
            probabilities = [list(prediction.probabilities.values()) for prediction in predictions]
            return np.asarray(probabilities), [prediction.outcome for prediction in predictions]

        return Classifier(name, revision, release.labels, release.metrics, predict, folder)
    if revision:
        # Beside a release's files: its image processor, and weights in shards.
        fetch_files(name, revision, ("*.json", "*.safetensors"))
    return _from_pipeline(folder, name, revision, gpu_or_cpu() if device == AUTO else device)


def match_labels(
    name: str, theirs: Sequence[str], ours: Sequence[str], label_map: Mapping[str, str]
) -> tuple[int, ...]:
    """Match a model's T classes to those of a data set: T indices into `ours`; an error without a counterpart.

    Args:
        theirs: several may be one of ours (their probabilities are added).
        label_map: theirs → ours, for those whose names differ in more than case.
    """
    index = {label.casefold(): k for k, label in enumerate(ours)}
    renamed = {their.casefold(): our.casefold() for their, our in label_map.items()}
    found = [index.get(renamed.get(label.casefold(), label.casefold())) for label in theirs]
    matched = tuple(k for k in found if k is not None)
    if len(matched) < len(theirs) or len(set(matched)) < len(ours):
        if len(theirs) < len(ours):
            how = "it lacks some of these: leave their cells out, or give another model"
        else:
            how = "say of each of its classes which one it is, with --label_map THEIRS=OURS once for each"
        raise LeukoscopeError(
            f"{name}: its classes are {', '.join(theirs)}, those of the data set {', '.join(ours)}; {how}"
        )
    return matched


def _is_release(folder: Path) -> bool:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A folder without a readable config.json is no model at all; `load_release` has the message for that.
        return True
    return isinstance(config, dict) and config.keys() >= _RELEASE_KEYS


def _from_pipeline(folder: Path, name: str, revision: str, device: str) -> Classifier:
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

    if not any(folder.glob("*.safetensors")):
        raise LeukoscopeError(
            f"{name}: holds no .safetensors file; pickled weights can run code and are never loaded — convert them "
            "to safetensors"
        )
    # Files in half precision are computed in float32, as releases are.
    safe: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    safe["trust_remote_code"] = False
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        # timm's own exports name the number of classes there as well, and transformers would pass it twice.
        (getattr(config, "model_args", None) or {}).pop("num_classes", None)
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        network, loaded = AutoModelForImageClassification.from_pretrained(folder, config=config, **safe)
    except Exception as error:  # the loaders raise a dozen unrelated types, safetensors' own among them
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].replace(str(folder), name)
        if "trust_remote_code" in reason or "custom code" in reason:
            reason = "it wants to run Python code of its own, which is never run"
        raise LeukoscopeError(
            f"{name}: transformers cannot open it as an image classifier ({reason}); give a model that "
            "pipeline('image-classification') opens"
        ) from None
    if missing := sorted(loaded["missing_keys"]):
        raise LeukoscopeError(
            f"{name}: its weights lack {missing[0]} ({len(missing)} tensor(s) in all), which would be random; give a "
            "model that was trained to classify"
        )
    pipe: Any = pipeline("image-classification", model=network, image_processor=processor, device=device)
    config = pipe.model.config
    labels = tuple(dict.fromkeys(str(label) for _, label in sorted(config.id2label.items())))

    def predict(pictures: Sequence[Image.Image]) -> tuple[np.ndarray, None]:
        options = {"top_k": config.num_labels, "function_to_apply": "softmax"}
        found = np.zeros((len(pictures), len(labels)))
        for row, outputs in zip(found, pipe(list(pictures), batch_size=len(pictures), **options), strict=True):
            for output in outputs:  # two outputs of one name count together
                row[labels.index(str(output["label"]))] += output["score"]
        return found, None

    return Classifier(name, revision, labels, {}, predict)
