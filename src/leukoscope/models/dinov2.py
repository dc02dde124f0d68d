"""Convert a checkpoint of DINOv2's layout, such as DinoBloom's, to timm's format: safetensors, and no pickled code run.

DinoBloom (Koch et al. 2024, doi:10.1007/978-3-031-72390-2_49) offers vision transformers trained with DINOv2 on white
blood cells as `.pth` files: the networks of its teacher and student, under the names that DINOv2's code gives them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from leukoscope import LeukoscopeError
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.files import atomic_folder, disk_errors
from leukoscope.models.release_files import CONFIG, WEIGHTS, write_json

# Width of the features → timm's architecture.
_ARCHITECTURES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
_PATCH = 14


def convert_dinov2(checkpoint: Path, folder: Path) -> Path:
    """Write a checkpoint as a folder in timm's format, which --model_name_or_path and `timm.create_model` open.

    Args:
        checkpoint: a `.pth` file of tensors: `{"teacher": …}` or `{"model": …}` as DINOv2's training writes it, or the
            names and tensors of the network alone.
        folder: a new one; it appears whole or not at all.

    Returns:
        `folder`.

    Raises:
        LeukoscopeError: no such file, one that holds more than tensors or another network, a folder that is there
            already, or a disk that refuses.
    """
    from safetensors.torch import save_file

    if folder.exists():
        raise LeukoscopeError(f"{folder}: is there already; name a new folder")
    try:
        # Nothing but tensors and plain containers is read: other pickled objects could run code.
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise LeukoscopeError(f"{checkpoint}: cannot be read ({error.strerror or error}); check the path") from None
    except (AttributeError, EOFError, LookupError, RuntimeError, TypeError, UnpicklingError, ValueError):
        # Without torch's reason, which advises to load the file in a way that runs code.
        raise LeukoscopeError(
            f"{checkpoint}: is no checkpoint of tensors alone; anything else in it could run code and is never loaded; "
            "give a checkpoint of DINOv2's layout"
        ) from None
    for part in ("teacher", "model"):
        content = content.get(part, content) if isinstance(content, dict) else content
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise LeukoscopeError(f"{checkpoint}: holds no network's tensors by name; give a checkpoint of DINOv2's layout")
    try:
        architecture, size, tensors = timm_tensors(content)
    except LeukoscopeError as error:
        raise LeukoscopeError(f"{checkpoint}: {error}") from None
    cfg = Preprocessing(size, 1.0).to_pretrained_cfg() | {"fixed_input_size": True, "num_classes": 0}
    layers = {"first_conv": "patch_embed.proj", "classifier": "head", "pool_size": None}
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": len(tensors["norm.weight"]),
        "model_args": {"img_size": size},
        "pretrained_cfg": {"tag": checkpoint.stem.lower(), "custom_load": False, **cfg, **layers},
    }
    with disk_errors(f"{folder}: cannot be written", "name another folder"), atomic_folder(folder) as aside:
        aside.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, aside / WEIGHTS, metadata={"format": "pt"})
        (aside / WEIGHTS).chmod(0o644)  # safetensors lets its owner alone read it
        write_json(aside / CONFIG, config, exact=True)
    return folder


def timm_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[str, int, dict[str, torch.Tensor]]:
    """A DINOv2 network's tensors under timm's names.

    Args:
        tensors: by DINOv2's names, alone or below "backbone."; heads of the training are left out.

    Returns:
        timm's architecture, the side of its pictures in pixels, and all of its tensors.

    Raises:
        LeukoscopeError: another network.
    """
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    below = any(name.startswith("backbone.") for name in tensors)
    named = {k.removeprefix("backbone."): v for k, v in tensors.items() if not below or k.startswith("backbone.")}
    # Blocks that were trained in chunks: blocks.<chunk>.<number>.
    named = {re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", k): v for k, v in named.items()}
    patches, places, norm = (named.get(k) for k in ("patch_embed.proj.weight", "pos_embed", "norm.weight"))
    width = 0 if norm is None else norm.numel()
    side = math.isqrt(places.shape[1] - 1) if places is not None and places.ndim == 3 and places.shape[1] > 1 else 0
    if (
        patches is None
        or places is None
        or patches.shape[2:] != (_PATCH, _PATCH)
        or places.shape != (1, side**2 + 1, width)
        or width not in _ARCHITECTURES
    ):
        raise LeukoscopeError(
            f"holds no DINOv2 vision transformer with patches of {_PATCH} px (features {width} wide; known are "
            f"{', '.join(map(str, _ARCHITECTURES))})"
        )
    architecture = f"vit_{_ARCHITECTURES[width]}_patch{_PATCH}_dinov2"
    size = _PATCH * side
    with torch.device("meta"):
        network: Any = timm.create_model(architecture, img_size=size, num_classes=0)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # DINOv2's token of masked patches is for its training alone; by it timm tells these names.
    given = checkpoint_filter_fn({"mask_token": torch.empty(0), **named}, network)
    different = sorted(k for k in wanted.keys() | given.keys() if k not in given or wanted.get(k) != given[k].shape)
    if different:
        raise LeukoscopeError(f"is no whole {architecture}: {len(different)} tensors differ, e.g. {different[0]}")
    return architecture, size, given
