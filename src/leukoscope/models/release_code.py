"""What lets transformers open a release whose network timm does not know: the network's code, copied beside it.

`pipeline(…, trust_remote_code=True)` runs that copy. Leukoscope reads the same settings and builds the network with
its own code, so that it never runs any that came with a release.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leukoscope import LeukoscopeError, cells
from leukoscope.cells.files import write_whole
from leukoscope.cells.preprocessing import Preprocessing
from leukoscope.models import remote
from leukoscope.models.remote.networks import OWN_ARCHITECTURES, OwnNetwork, build_own

# Where each file that is copied into a release lies.
_SOURCES = {"modeling_leukoscope.py": remote, "networks.py": remote, "framing.py": cells}
CODE = tuple(_SOURCES)
PROCESSOR = "preprocessor_config.json"
# Where the network stands in the shipped model, and so what its tensors' names begin with.
NETWORK = "network."
_MODEL_TYPE = "leukoscope"
_AUTO_MAP = {
    "AutoConfig": "modeling_leukoscope.LeukoscopeConfig",
    "AutoImageProcessor": "modeling_leukoscope.LeukoscopeImageProcessor",
    "AutoModelForImageClassification": "modeling_leukoscope.LeukoscopeForImageClassification",
}


def code_config(network: OwnNetwork, labels: Sequence[str]) -> dict[str, Any]:
    """What config.json holds beyond that of a timm model."""
    return {
        "model_type": _MODEL_TYPE,
        "architectures": ["LeukoscopeForImageClassification"],
        "auto_map": _AUTO_MAP,
        "head": network.head_settings,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: k for k, label in enumerate(labels)},
    }


def save_code(directory: Path, preprocessing: Preprocessing) -> None:
    """Copy the code into a release's folder, and say how its image processor prepares a picture.

    Raises:
        OSError: the disk refuses.
    """
    for name, package in _SOURCES.items():
        shutil.copyfile(Path(package.__path__[0]) / name, directory / name)
    # For a folder transformers reads config.json's auto_map, for a Hub repository this one.
    processor = {
        "auto_map": {"AutoImageProcessor": _AUTO_MAP["AutoImageProcessor"]},
        "pretrained_cfg": preprocessing.to_pretrained_cfg(),
    }
    write_whole(directory / PROCESSOR, json.dumps(processor, indent=1) + "\n")


def needs_code(config: Mapping[str, Any]) -> bool:
    """Whether a release's config.json describes a network that timm does not know."""
    return config.get("model_type") == _MODEL_TYPE


def network_of(config: Mapping[str, Any], path: Path) -> OwnNetwork:
    """The network that config.json describes, with random weights, built by this installation's own code.

    Args:
        path: of that file, for messages.

    Raises:
        LeukoscopeError: an architecture or a head that nothing here builds.
    """
    import timm

    architecture, head = config["architecture"], config.get("head")
    if not (architecture in OWN_ARCHITECTURES if head is None else timm.is_model(architecture)):
        under = "without a head of its own" if head is None else "to stand under a head of its own"
        raise LeukoscopeError(f"{path}: no architecture {architecture!r} {under} is known; update leukoscope and timm")
    try:
        return build_own(architecture, config["num_classes"], head)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LeukoscopeError(
            f"{path}: {architecture} cannot be built with its head ({error}); restore it from the release"
        ) from None
