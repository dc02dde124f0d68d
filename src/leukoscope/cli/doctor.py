"""`leukoscope doctor` checks this installation and names the next step for each problem."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.cli import flags
from leukoscope.cli.options import print_table
from leukoscope.files import cache_root, embedded_releases

GOOD, ADVICE, BROKEN = STATES = ("good", "advice", "broken")
NEEDED_ON_DISK = 5_000_000_000  # bytes: a release, its run's checkpoints and the decoded cells of one data set
_NAMED = ("torch", "timm", "transformers", "accelerate", "gradio", "huggingface-hub")


@dataclass(frozen=True)
class Finding:
    """The result of one check; `next_step` says what to do unless all is good."""

    name: str
    state: str
    seen: str
    next_step: str = ""


def doctor(
    releases: Annotated[
        Path | None, Option(metavar="DIR", help="Folder of releases to try (default: those that come along).")
    ] = None,
    as_json: flags.AsJson = False,
) -> None:
    """Check versions, device, caches, disk, network and releases, and name the next step for what is wrong.

    Exit code: 0 all works, though there may be advice; 1 something is broken.
    """
    findings = list(examine(releases or embedded_releases()))
    state = max((finding.state for finding in findings), key=STATES.index)
    if as_json:
        report = {"version": __version__, "state": state, "findings": [vars(finding) for finding in findings]}
        typer.echo(json.dumps(report | {"notice": RESEARCH_NOTICE}, indent=1))
    else:
        print_table(["checked", "state", "found"], [[one.name, one.state, one.seen] for one in findings], texts=3)
        for finding in findings:
            if finding.next_step:  # not wrapped: a command is there to be copied
                typer.echo(f"{finding.name}, next step: {finding.next_step}")
        typer.echo(RESEARCH_NOTICE)
    if state == BROKEN:
        raise typer.Exit(1)


def examine(releases: Path) -> Iterator[Finding]:
    """Make every check, the quick ones first; the sub-folders of `releases` are the releases to try."""
    yield (versions := check_versions())
    yield (device := check_device())
    if BROKEN in (versions.state, device.state):  # the other checks would fail for the same reason
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    yield check_folder("cache", cache_root(), "LEUKOSCOPE_CACHE")
    yield check_folder("Hub cache", Path(HF_HUB_CACHE), "HF_HUB_CACHE")
    yield check_network()
    yield from check_releases(releases)


def check_versions(package: str = "leukoscope") -> Finding:
    """Compare Python and what a package needs with what is installed; what extras bring, where it is there."""
    from transformers.utils.versions import require_version

    try:
        listed = requires(package) or []
    except PackageNotFoundError:
        seen = f"{package} runs from its source, so nothing tells which versions it needs"
        return Finding("versions", ADVICE, seen, 'pip install --editable ".[all]"')
    fitting, problems = {}, []
    for line in listed:
        needed, _, only_if = line.partition(";")
        name, bounds = re.match(r"([\w.-]+)(?:\[.*\])?(.*)", needed.strip()).groups()  # type: ignore[union-attr]
        try:
            found = version(name)
        except PackageNotFoundError:
            if not only_if:
                problems.append(f"{name} is missing")
            continue
        try:
            require_version(name + bounds)
            fitting[name] = found
        except ImportError:
            problems.append(f"{name} is {found}, needed is {bounds}")
    if problems:
        return Finding("versions", BROKEN, "; ".join(problems), f"pip install --upgrade {package}")
    named = ", ".join(f"{name} {fitting[name]}" for name in _NAMED if name in fitting)
    seen = f"leukoscope {__version__}, Python {platform.python_version()}, {named}; all {len(fitting)} packages fit"
    return Finding("versions", GOOD, seen)


def check_device() -> Finding:
    """Import PyTorch and name the device it computes on."""
    try:
        import torch

        import_module("torchvision")  # fails where the builds of the two do not belong together
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        again = "pip install --force-reinstall torch torchvision   # both from one index"
        return Finding("device", BROKEN, f"PyTorch does not start: {reason}", again)
    if torch.cuda.is_available():
        return Finding("device", GOOD, torch.cuda.get_device_name())
    seen = f"CPU with {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()}"
    if shutil.which("nvidia-smi"):
        seen += f"; an NVIDIA driver is here, but PyTorch {torch.__version__} sees no GPU"
        build = "see https://pytorch.org/get-started/locally for a build that fits the driver"
        return Finding("device", ADVICE, seen, build)
    return Finding("device", GOOD, seen)


def check_folder(name: str, folder: Path, variable: str) -> Finding:
    """Try to write to a cache folder, or where it will be made; `variable` of the environment names another one."""
    # os.path.exists is False, and Path.exists raises, where the system refuses to look.
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        seen = f"{folder}: cannot be written ({error.strerror or error})"
        return Finding(name, BROKEN, seen, f"set {variable} to a folder of your own")
    seen = f"{folder}{'' if folder == there else ', made when first needed'}; {free / 1e9:.1f} GB free"
    if free < NEEDED_ON_DISK:
        return Finding(name, ADVICE, seen, f"free some space, or set {variable} to a folder on another disk")
    return Finding(name, GOOD, seen)


def check_network() -> Finding:
    """Ask the Hub for the weights that training starts from by default: one request, for seconds."""
    from huggingface_hub.errors import HfHubHTTPError

    from leukoscope.models.hub_download import HubUnreachable, hub_model_info
    from leukoscope.models.recipes import get_recipe
    from leukoscope.training.config import ModelArguments

    start_weights = get_recipe(ModelArguments().recipe).base_model
    try:
        hub_model_info(start_weights)
    except HubUnreachable as reason:
        fix = "unset HF_HUB_OFFLINE" if "HF_HUB_OFFLINE" in str(reason) else "check the network"
        works = f"embedded releases, cached models and --from_scratch work without; for the rest {fix}"
        return Finding("network", ADVICE, f"the Hub cannot be reached: {reason}", works)
    except HfHubHTTPError as error:
        seen = f"the Hub refuses access to {start_weights} (HTTP {error.response.status_code})"
        return Finding("network", ADVICE, seen, "run `hf auth login`")
    return Finding("network", GOOD, f"the Hub can be reached and has {start_weights}")


def check_releases(folder: Path) -> Iterator[Finding]:
    """Check of every release in a folder that it loads, predicts a phantom, and has the classes of its metrics."""
    from PIL import Image

    from leukoscope.inference.predictor import Predictor
    from leukoscope.models.release_files import release_folders
    from leukoscope.synthetic import draw_cell

    if not folder.is_dir():
        raise LeukoscopeError(f"--releases {folder}: no such folder; check the path")
    if not (found := release_folders(folder)):
        train = "train one with `leukoscope train`, or give their folder with --releases"
        yield Finding("releases", ADVICE, f"none in {folder}", train)
    phantom = Image.fromarray(draw_cell("ALL").image)
    for release in found:
        name, restore = f"release {release.name}", f"restore {release} from where it came, or remove it"
        try:
            predictor = Predictor.from_pretrained(release, backend="torch", device="cpu")  # needs no exported graph
            seen = f"classifies a phantom in {predictor(phantom).seconds:.2f} s"
            labels = ", ".join(predictor.labels)
            measured = ", ".join(predictor.release.metrics.get("labels", predictor.labels))
            if measured != labels:
                raise LeukoscopeError(f"config.json names the classes {labels}, metrics.json {measured}")
        except LeukoscopeError as error:
            yield Finding(name, BROKEN, str(error), restore)
            continue
        if predictor.ood is None:
            fit = f"leukoscope release recalibrate {release} --train_dir DIR --output DIR"
            yield Finding(name, ADVICE, f"{seen}; it has no OOD detector", fit)
        else:
            yield Finding(name, GOOD, f"{seen}; it has an OOD detector")
