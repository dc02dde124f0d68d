"""`leukoscope doctor` checks this installation and names the next step for each problem."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import typer

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.cli import options
from leukoscope.cli.options import print_table
from leukoscope.files import cache_root, first_line

GOOD, ADVICE, BROKEN = STATES = ("good", "advice", "broken")
NEEDED_ON_DISK = 5_000_000_000  # bytes: a release, its run's checkpoints and the decoded cells of one data set


class Finding(NamedTuple):
    """The result of one check; `next_step` says what to do unless all is good."""

    name: str
    state: str
    seen: str
    next_step: str = ""


def doctor(as_json: options.AsJson = False) -> None:
    """Check versions, device, caches, disk and network, and name the next step for what is wrong.

    Exit code: 0 all works, though there may be advice; 1 something is broken.
    """
    findings = [check_versions(), check_device()]
    if BROKEN not in [finding.state for finding in findings]:  # else the other checks would fail for the same reason
        from huggingface_hub.constants import HF_HUB_CACHE

        findings += [check_folder(cache_root(), "LEUKOSCOPE_CACHE"), check_folder(Path(HF_HUB_CACHE), "HF_HUB_CACHE")]
        findings.append(check_network())
    state = max((finding.state for finding in findings), key=STATES.index)
    if as_json:
        report = {"version": __version__, "state": state, "findings": [finding._asdict() for finding in findings]}
        typer.echo(json.dumps(report | {"notice": RESEARCH_NOTICE}, indent=1))
    else:
        print_table(["checked", "state", "found"], [finding[:3] for finding in findings], texts=3)
        for finding in findings:
            if finding.next_step:  # not wrapped: a command is there to be copied
                typer.echo(f"{finding.name}, next step: {finding.next_step}")
        typer.echo(RESEARCH_NOTICE)
    raise typer.Exit(int(state == BROKEN))


def check_versions() -> Finding:
    """Compare the packages that Leukoscope needs with those installed."""
    from transformers.utils.versions import require_version

    try:
        needed = [line for line in requires("leukoscope") or [] if ";" not in line]  # without those of extras
    except PackageNotFoundError:
        return Finding("versions", ADVICE, "leukoscope is not installed", 'pip install --editable ".[all]"')
    try:
        for line in needed:
            require_version(line)
    except ImportError as error:  # of the first one that is missing or of another version
        return Finding("versions", BROKEN, first_line(error), "pip install --upgrade leukoscope")
    named = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "transformers", "accelerate"))
    seen = f"leukoscope {__version__}, Python {platform.python_version()}, {named}; all {len(needed)} packages fit"
    return Finding("versions", GOOD, seen)


def check_device() -> Finding:
    """Import PyTorch and name the device it computes on."""
    try:
        import torch

        import_module("torchvision")  # fails where the builds of the two do not belong together
    except (ImportError, OSError, RuntimeError) as error:
        again = "pip install --force-reinstall torch torchvision   # both from one index"
        return Finding("device", BROKEN, f"PyTorch does not start: {first_line(error)}", again)
    if torch.cuda.is_available():
        return Finding("device", GOOD, torch.cuda.get_device_name())
    seen = f"CPU with {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()}"
    if not shutil.which("nvidia-smi"):
        return Finding("device", GOOD, seen)
    build = "see https://pytorch.org/get-started/locally for a build that fits the driver"
    return Finding("device", ADVICE, f"{seen}; PyTorch {torch.__version__} sees no GPU, though a driver is here", build)


def check_folder(folder: Path, variable: str) -> Finding:
    """Try to write to a cache folder, or where it will be made; `variable` of the environment names another one."""
    # os.path.exists is False, and Path.exists raises, where the system refuses to look.
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        seen = f"{folder}: cannot be written ({error.strerror or error})"
        return Finding("cache", BROKEN, seen, f"set {variable} to a folder of your own")
    step = f"free some space, or set {variable} to a folder on another disk" if free < NEEDED_ON_DISK else ""
    return Finding("cache", ADVICE if step else GOOD, f"{folder}: {free / 1e9:.1f} GB free", step)


def check_network() -> Finding:
    """Ask the Hub for the weights that training starts from by default: one request, for seconds."""
    from leukoscope.models.hub_download import HubUnreachable, hub_model_info
    from leukoscope.models.recipes import get_recipe
    from leukoscope.training.config import ModelArguments

    try:
        hub_model_info(get_recipe(ModelArguments().recipe).base_model)
    except (HubUnreachable, OSError) as reason:
        works = "embedded releases, cached models and --from_scratch work without; for the rest "
        works += "unset HF_HUB_OFFLINE" if "HF_HUB_OFFLINE" in str(reason) else "check the network, or `hf auth login`"
        return Finding("network", ADVICE, f"the Hub cannot be reached: {first_line(reason)}", works)
    return Finding("network", GOOD, "the Hub can be reached")
