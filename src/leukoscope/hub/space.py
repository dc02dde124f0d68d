"""Write the folder of a Space (demo, package, requirements, names of the Hub models) and publish it.

The folder runs anywhere by `pip install -r requirements.txt` and `python app.py`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import leukoscope
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.files import atomic_folder, remedy, resource_file
from leukoscope.hub.publish import Destination, Published, folder_files, upload
from leukoscope.models.hub_download import RELEASE_FILES, HubUnreachable, hub_model_info, parse_hub_id
from leukoscope.models.release_files import CONFIG, WEIGHTS

APP, LIST, REQUIREMENTS, PACKAGE = "app.py", "models.txt", "requirements.txt", "src/leukoscope"
PYTHON_VERSION = "3.12"
# What Spaces with a borrowed GPU (ZeroGPU) run; torchvision's minor version is torch's plus 15.
TORCH = {"torch": ">=2.8,<2.12", "torchvision": ">=0.23,<0.27"}
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyi")


@dataclass(frozen=True)
class SpaceModel:
    """A model that a Space offers.

    Attributes:
        name: `owner/name` or `owner/name@revision`; without a revision the Space follows its main branch.
        files: those of the release that the repository holds.
        commit: what the revision names today; "" where none is named.
    """

    name: str
    files: tuple[str, ...]
    commit: str

    @property
    def id(self) -> str:
        """The repository."""
        return self.name.partition("@")[0]

    @property
    def preload(self) -> str:
        """The entry that has a Space fetch the model while it is built: repository, files, commit."""
        return " ".join(part for part in (self.id, ",".join(self.files), self.commit) if part)


def find_model(name: str) -> SpaceModel:
    """Find a model to offer on the Hub.

    Args:
        name: `owner/name` or `owner/name@revision`.

    Raises:
        LeukoscopeError: no Hub id, no such repository or revision, nothing to load in it, or no network.
    """
    from huggingface_hub.errors import HfHubHTTPError

    hub_id, revision = parse_hub_id(name)
    try:
        info = hub_model_info(hub_id, revision)
    except HubUnreachable as reason:
        raise LeukoscopeError(f"{name}: the Hub cannot be reached ({reason}); check the network") from None
    except HfHubHTTPError as error:
        raise LeukoscopeError(
            f"{name}: the Hub has no such model or revision, or keeps it from you (HTTP {error.response.status_code}); "
            "check the name, or run `hf auth login`"
        ) from None
    there = {file.rfilename for file in info.siblings or ()}
    files = tuple(file for file in RELEASE_FILES if file in there)
    if missing := [file for file in (CONFIG, WEIGHTS) if file not in files]:
        raise LeukoscopeError(f"{name}: has no {missing[0]}, so the Space could not load it; name another model")
    return SpaceModel(name, files, str(info.sha) if revision else "")


def write_space(models: Sequence[SpaceModel], out: Path, *, title: str = "Leukoscope") -> Path:
    """Write the folder of a Space, completely or not at all.

    Args:
        models: those to offer, the first one picked when the page opens.
        out: a new or empty folder, or one that holds an earlier Space of ours.
        title: of the Space's page.

    Raises:
        LeukoscopeError: `out` holds something else, or the disk refuses.
    """
    from jinja2 import Environment, StrictUndefined

    is_space = all((out / name).exists() for name in (APP, LIST, PACKAGE))
    if out.exists() and not is_space and (not out.is_dir() or any(out.iterdir())):
        raise LeukoscopeError(f"{out}: is there and holds no Space made by this command; name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out) as folder:
            shutil.copytree(Path(leukoscope.__file__).parent, folder / PACKAGE, ignore=_LEFT_OUT)
            for name in (APP, "LICENSE"):
                shutil.copyfile(resource_file(name), folder / name)
            (folder / LIST).write_text("".join(f"{model.name}\n" for model in models))
            (folder / REQUIREMENTS).write_text(space_requirements(resource_file(REQUIREMENTS).read_text()))
            template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
                resource_file("model_card/space.md").read_text()
            )
            page = template.render(
                title=title,
                notice=RESEARCH_NOTICE,
                sdk_version=version("gradio"),
                python_version=PYTHON_VERSION,
                app_file=APP,
                models=models,
            )
            (folder / "README.md").write_text(page)
    except OSError as error:
        # Copying a tree collects what went wrong, file by file.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror or error
        raise LeukoscopeError(
            f"{out}: the Space cannot be written there ({reason}); {remedy(error, 'name another folder')}"
        ) from None
    return out


def space_requirements(ours: str) -> str:
    """Our requirements within what Spaces run: torch's range is theirs, and Gradio's version that of the front matter.

    Raises:
        LeukoscopeError: one of these packages is not on our list.
    """
    bounds = {**TORCH, "gradio": f"=={version('gradio')}"}
    lines = [line for line in ours.splitlines() if line and not line.startswith("#")]
    for package, bound in bounds.items():
        places = [place for place, line in enumerate(lines) if re.match(rf"{package}\b(?![-.])", line)]
        if not places:
            raise LeukoscopeError(f"{REQUIREMENTS}: does not name {package}; restore it from the repository")
        lines[places[0]] = package + bound
    return "\n".join(lines) + "\n"


def push_space(folder: Path, space: str, *, private: bool = False, again: str) -> Published:
    """Put a folder written by `write_space` on the Hub as a Space, in one commit.

    Args:
        space: `owner/name`; made where it does not exist.
        again: the command that repeats this, for the message when it fails.

    Raises:
        LeukoscopeError: no token, or the Hub refused or could not be reached; the folder is only read.
    """
    to = Destination(space, private=private, kind="space")
    to.require_usable()

    def is_ours(name: str) -> bool:
        """Whether this command writes it; other files of the Space's owner are never deleted."""
        return name in (APP, LIST, REQUIREMENTS, "README.md", "LICENSE") or name.startswith(f"{PACKAGE}/")

    hint = f"The Space is whole in {folder}; go on with: {again}"
    return upload(folder_files(folder), to, is_ours=is_ours, hint=hint)
