"""What an installation needs before it can be relied on, looked at one by one, each with the next step where it fails.

Nothing is changed on the machine and nothing is kept: a check looks, and says what it saw. Whatever leans on other
packages is imported inside the check that needs it, so that a missing package is a finding rather than a traceback.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from leukoscope import LeukoscopeError, __version__
from leukoscope.cells.files import cache_root
from leukoscope.hub.shipped import shipped_file, training_command

State = Literal["good", "advice", "broken"]
# A release with its run's checkpoints and the decoded cells of one data set fit in this.
ROOM_ON_DISK = 5_000_000_000
_NAMED = ("torch", "torchvision", "timm", "transformers", "accelerate", "gradio", "huggingface-hub")


@dataclass(frozen=True)
class Finding:
    """What one check saw.

    Attributes:
        name: what was looked at.
        state: "good"; "advice": all works, something could be better; "broken": something will not work.
        seen: in words.
        next_step: what to do about it; "" where nothing needs doing.
    """

    name: str
    state: State
    seen: str
    next_step: str = ""


def examine(releases: Path) -> Iterator[Finding]:
    """Every check in turn, the quick ones first.

    Args:
        releases: folder whose sub-folders are the releases to try.
    """
    yield (versions := check_versions(shipped_file("requirements.txt")))
    yield (device := check_device())
    if versions.state == "broken" or device.state == "broken":
        # The others would only fail for the same reason.
        return
    yield check_backends(os.environ.get("LEUKOSCOPE_BACKEND", ""))
    yield check_writable("cache", cache_root(), "LEUKOSCOPE_CACHE")
    yield check_writable("Hub cache", _hub_cache(), "HF_HUB_CACHE")
    yield check_disk(cache_root())
    yield check_network()
    yield from check_releases(releases)


def worst(findings: Sequence[Finding]) -> State:
    """The state of an installation: that of its worst finding."""
    states: tuple[State, ...] = ("broken", "advice")
    return next((state for state in states if any(finding.state == state for finding in findings)), "good")


def check_versions(requirements: Path) -> Finding:
    """Python and every package of the list, against what the list asks for."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    lines = (line.split("#")[0].strip() for line in requirements.read_text().splitlines())
    listed = [Requirement(line) for line in lines if line]
    installed, problems = {}, []
    for package in listed:
        try:
            installed[package.name] = version(package.name)
        except PackageNotFoundError:
            problems.append(f"{package.name} is missing")
            continue
        if not package.specifier.contains(installed[package.name], prereleases=True):
            problems.append(f"{package.name} is {installed[package.name]}, needed is {package.specifier}")
    if problems:
        return Finding("versions", "broken", "; ".join(problems), f"pip install -r {requirements}")
    named = ", ".join(f"{name} {installed[name]}" for name in _NAMED if name in installed)
    seen = f"leukoscope {__version__}, Python {platform.python_version()}, {named}; all {len(listed)} packages fit"
    return Finding("versions", "good", seen)


def check_device() -> Finding:
    """Whether PyTorch starts, and what it computes on."""
    try:
        import torch

        # Builds of the two that do not belong together fail here.
        import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        again = "pip install --force-reinstall torch torchvision   # both from one index"
        return Finding("device", "broken", f"PyTorch does not start: {_first_line(error)}", again)
    if torch.cuda.is_available():
        return Finding("device", "good", torch.cuda.get_device_name())
    seen = f"CPU with {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()}"
    if shutil.which("nvidia-smi"):
        return Finding(
            "device",
            "advice",
            f"{seen}; an NVIDIA driver is here, but PyTorch {torch.__version__} sees no GPU",
            "see https://pytorch.org/get-started/locally for a build that fits the driver",
        )
    return Finding("device", "good", seen)


def check_backends(wanted: str) -> Finding:
    """What can compute a release's network here, and whether that is what the environment asks for.

    Args:
        wanted: the value of LEUKOSCOPE_BACKEND; "" leaves the choice to the predictor.
    """
    from leukoscope.inference.backends import AUTO, BACKENDS, ONNX, OPENVINO, TORCH

    modules = {TORCH: "torch", OPENVINO: "openvino", ONNX: "onnxruntime"}
    there = [name for name, module in modules.items() if find_spec(module)]
    seen = f"{', '.join(there)}; LEUKOSCOPE_BACKEND is {wanted or 'not set'}"
    if wanted not in ("", AUTO, *there):
        known = f"unset LEUKOSCOPE_BACKEND, or name one of {', '.join((AUTO, *there))}"
        install = f", or pip install {modules[wanted]}" if wanted in BACKENDS else ""
        return Finding("backends", "broken", seen, known + install)
    return Finding("backends", "good", seen)


def check_writable(name: str, folder: Path, variable: str) -> Finding:
    """Whether files can be kept in a folder, which may yet have to be made.

    Args:
        variable: of the environment, that names another folder.
    """
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            return Finding(name, "good", f"{folder}{'' if folder.is_dir() else ', made when first needed'}")
    except OSError as error:
        seen = f"{folder}: cannot be written ({error.strerror or error})"
        return Finding(name, "broken", seen, f"set {variable} to a folder of your own")


def check_disk(folder: Path) -> Finding:
    """Free space where decoded cells and exported graphs are kept."""
    free = shutil.disk_usage(_nearest(folder)).free
    seen = f"{free / 1e9:.1f} GB free at {folder}"
    if free < ROOM_ON_DISK:
        return Finding("disk", "advice", seen, "free some space, or train with --cache_images False")
    return Finding("disk", "good", seen)


def check_network() -> Finding:
    """Whether the Hub has the weights that training starts from by default; asked once, for seconds."""
    from huggingface_hub.errors import HfHubHTTPError

    from leukoscope.inference.hub_files import HubUnreachable, ask_hub
    from leukoscope.models.recipes import get_recipe
    from leukoscope.training.config import ModelArguments

    start_weights = get_recipe(ModelArguments().recipe).base_model
    without = "embedded releases, cached models and --from_scratch work without; for the rest check the network"
    try:
        ask_hub(start_weights)
    except HubUnreachable as reason:
        return Finding("network", "advice", f"no answer from the Hub: {reason}", without)
    except HfHubHTTPError as error:
        seen = f"the Hub keeps {start_weights} back (HTTP {error.response.status_code})"
        return Finding("network", "advice", seen, "run `hf auth login`")
    return Finding("network", "good", f"the Hub answers and has {start_weights}")


def check_releases(folder: Path) -> Iterator[Finding]:
    """Every release in a folder, loaded and asked about a phantom."""
    from leukoscope.models.release_files import CONFIG

    found = [config.parent for config in sorted(folder.glob(f"*/{CONFIG}")) if not config.parent.name.startswith(".")]
    if not found:
        train = f"train one with `{training_command()}`, or give their folder with --releases"
        yield Finding("releases", "advice", f"none in {folder}", train)
    yield from map(check_release, found)


def check_release(folder: Path) -> Finding:
    """Whether a release is whole: it loads, answers in numbers, means the classes its metrics name, knows its cells."""
    from PIL import Image

    from leukoscope.cells.phantoms import draw_cell
    from leukoscope.inference.predictor import Predictor
    from leukoscope.models.release_files import read_metrics

    name, restore = f"release {folder.name}", f"restore {folder} from where it came, or remove it"
    try:
        # The one that needs no graph to be made and kept first.
        predictor = Predictor.from_pretrained(folder, backend="torch")
        prediction = predictor(Image.fromarray(draw_cell("ALL").image))
        measured = tuple(read_metrics(folder).get("labels", predictor.labels))
    except LeukoscopeError as error:
        return Finding(name, "broken", str(error), restore)
    if not all(math.isfinite(share) for share in prediction.probabilities.values()):
        return Finding(name, "broken", f"its answer to a phantom is no number: {prediction.probabilities}", restore)
    if measured != tuple(predictor.labels):
        seen = f"config.json names the classes {', '.join(predictor.labels)}, metrics.json {', '.join(measured)}"
        return Finding(name, "broken", seen, restore)
    seen = f"answers a phantom in {prediction.seconds:.2f} s"
    if predictor.ood is None:
        fit = f"leukoscope recalibrate {folder} --train_dir DIR --output_dir DIR"
        return Finding(name, "advice", f"{seen}; it has no OOD detector", fit)
    return Finding(name, "good", f"{seen}; its OOD detector is in place")


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _nearest(folder: Path) -> Path:
    """The folder, or the closest above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
