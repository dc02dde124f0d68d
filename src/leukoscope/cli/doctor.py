"""`leukoscope doctor` checks this installation and names the next step for each problem; `leukoscope demo`."""

from __future__ import annotations

import json
import math
import os
import platform
import runpy
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.cli.options import AsJson
from leukoscope.files import cache_root, embedded_releases, resource_file

_COLOURS = {"good": "green", "advice": "yellow", "broken": "bold red"}


def doctor(
    releases: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of releases to try (default: those that come along).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check versions, device, caches, disk, network and releases, and name the next step for what is wrong.

    Exit code: 0 all works, though there may be advice; 1 something is broken.
    """
    findings = list(examine(releases or embedded_releases()))
    if as_json:
        report = {"version": __version__, "state": worst(findings), "findings": [vars(finding) for finding in findings]}
        typer.echo(json.dumps(report | {"notice": RESEARCH_NOTICE}, indent=1))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console, table = Console(highlight=False), Table("checked", "state", "found")
        for finding in findings:
            table.add_row(
                finding.name, Text(finding.state, _COLOURS[finding.state]), Text(finding.seen, overflow="fold")
            )
        console.print(table)
        for finding in findings:
            if finding.next_step:
                # Not wrapped: a command is there to be copied.
                typer.echo(f"{finding.name}, next step: {finding.next_step}")
        typer.echo(RESEARCH_NOTICE)
    if worst(findings) == "broken":
        raise typer.Exit(1)


def demo(
    releases: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of releases to offer (default: those that come along).")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of Hub ids to offer as well, one per line.")
    ] = None,
) -> None:
    """Open the demo on http://127.0.0.1:7860; GRADIO_SERVER_PORT names another port.

    It runs app.py, as a checkout and a Space do.
    """
    app = str(resource_file("app.py"))
    named = {"--releases": releases, "--models": models}
    sys.argv = [app, *(word for flag, path in named.items() if path is not None for word in (flag, str(path)))]
    runpy.run_path(app, run_name="__main__")


State = Literal["good", "advice", "broken"]
# A release with its run's checkpoints and the decoded cells of one data set fit in this.
NEEDED_ON_DISK = 5_000_000_000
_NAMED = ("torch", "torchvision", "timm", "transformers", "accelerate", "gradio", "huggingface-hub")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        state: "good"; "advice": all works, something could be better; "broken": something will not work.
        seen: what was found.
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
    yield (versions := check_versions(resource_file("requirements.txt")))
    yield (device := check_device())
    if versions.state == "broken" or device.state == "broken":
        # The others would only fail for the same reason.
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    yield check_backends(os.environ.get("LEUKOSCOPE_BACKEND", ""))
    yield check_writable("cache", cache_root(), "LEUKOSCOPE_CACHE")
    yield check_writable("Hub cache", Path(HF_HUB_CACHE), "HF_HUB_CACHE")
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

    lines = (line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
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
        reason = (str(error) or type(error).__name__).splitlines()[0]
        again = "pip install --force-reinstall torch torchvision   # both from one index"
        return Finding("device", "broken", f"PyTorch does not start: {reason}", again)
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
    from leukoscope.inference.runtime import AUTO, BACKENDS, PACKAGES, TORCH

    packages = {TORCH: "torch", **{name: packages for name, (_, packages) in PACKAGES.items()}}
    there = [name for name, needed in packages.items() if all(map(find_spec, needed.split()))]
    seen = f"{', '.join(there)}; LEUKOSCOPE_BACKEND is {wanted or 'not set'}"
    if wanted not in ("", AUTO, *there):
        known = f"unset LEUKOSCOPE_BACKEND, or name one of {', '.join((AUTO, *there))}"
        install = f", or pip install {packages[wanted]}" if wanted in BACKENDS else ""
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
    if free < NEEDED_ON_DISK:
        return Finding("disk", "advice", seen, "free some space, or train with --cache_images False")
    return Finding("disk", "good", seen)


def check_network() -> Finding:
    """Whether the Hub has the weights that training starts from by default; one request, for seconds."""
    from huggingface_hub.errors import HfHubHTTPError

    from leukoscope.models.hub_download import HubUnreachable, hub_model_info
    from leukoscope.models.recipes import get_recipe
    from leukoscope.training.config import ModelArguments

    start_weights = get_recipe(ModelArguments().recipe).base_model
    without = "embedded releases, cached models and --from_scratch work without; for the rest"
    try:
        hub_model_info(start_weights)
    except HubUnreachable as reason:
        fix = "unset HF_HUB_OFFLINE" if "HF_HUB_OFFLINE" in str(reason) else "check the network"
        return Finding("network", "advice", f"the Hub cannot be reached: {reason}", f"{without} {fix}")
    except HfHubHTTPError as error:
        seen = f"the Hub refuses access to {start_weights} (HTTP {error.response.status_code})"
        return Finding("network", "advice", seen, "run `hf auth login`")
    return Finding("network", "good", f"the Hub can be reached and has {start_weights}")


def check_releases(folder: Path) -> Iterator[Finding]:
    """Every release in a folder, loaded and run on a phantom."""
    from leukoscope.models.release_files import CONFIG

    if not folder.is_dir():
        raise LeukoscopeError(f"--releases {folder}: no such folder; check the path")
    found = [config.parent for config in sorted(folder.glob(f"*/{CONFIG}")) if not config.parent.name.startswith(".")]
    found = [folder] if (folder / CONFIG).is_file() else found
    if not found:
        train = "train one with `leukoscope train`, or give their folder with --releases"
        yield Finding("releases", "advice", f"none in {folder}", train)
    yield from map(check_release, found)


def check_release(folder: Path) -> Finding:
    """Whether a release is whole: it loads, predicts finite probabilities, and has the classes of its metrics."""
    from PIL import Image

    from leukoscope.data.synthetic import draw_cell
    from leukoscope.inference.predictor import Predictor
    from leukoscope.models.release_files import read_metrics

    name, restore = f"release {folder.name}", f"restore {folder} from where it came, or remove it"
    try:
        # The one that needs no graph to be made and kept first.
        predictor = Predictor.from_pretrained(folder, backend="torch", device="cpu")
        prediction = predictor(Image.fromarray(draw_cell("ALL").image))
        measured = tuple(read_metrics(folder).get("labels", predictor.labels))
    except LeukoscopeError as error:
        return Finding(name, "broken", str(error), restore)
    if not all(math.isfinite(share) for share in prediction.probabilities.values()):
        return Finding(
            name, "broken", f"its prediction for a phantom is not finite: {prediction.probabilities}", restore
        )
    if measured != tuple(predictor.labels):
        seen = f"config.json names the classes {', '.join(predictor.labels)}, metrics.json {', '.join(measured)}"
        return Finding(name, "broken", seen, restore)
    seen = f"classifies a phantom in {prediction.seconds:.2f} s"
    if predictor.ood is None:
        fit = f"leukoscope release recalibrate {folder} --train_dir DIR --output DIR"
        return Finding(name, "advice", f"{seen}; it has no OOD detector", fit)
    return Finding(name, "good", f"{seen}; its OOD detector is in place")


def _nearest(folder: Path) -> Path:
    """The folder, or the closest above it that is there."""
    # Unlike `Path.exists`, it takes what may not be looked at for missing.
    return next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
