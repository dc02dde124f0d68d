"""Write the folder of a Space and publish it: the demo with what it needs of the package, or a static page.

The demo's folder runs anywhere by `pip install -r requirements.txt` and `python app.py`. The static page computes one
release in the visitor's browser, so that no picture leaves it; any file server will do.
"""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from http.client import HTTPException
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import leukoscope
from leukoscope import RESEARCH_NOTICE, ReleaseError
from leukoscope.files import atomic_folder, disk_errors, is_git_clone, resource_file
from leukoscope.hub.publish import Destination, Published, reason, upload
from leukoscope.inference.gradcam import map_colours
from leukoscope.inference.graph import ONNX_GRAPH, write_onnx
from leukoscope.inference.ood import STATISTIC_GROUPS, OodDetector
from leukoscope.inference.prediction import OUT_OF_DISTRIBUTION, REASON_TEXTS, SIDE_MAY_DIFFER, Decision, Thresholds
from leukoscope.models.hub_download import RELEASE_FILES, HubUnreachable, hub_model_info, parse_hub_id
from leukoscope.models.release import CARD_FILE, CONFIG_FILE, OOD_FILE, WEIGHTS_FILE, ReleaseInfo, folder_name
from leukoscope.reports import text
from leukoscope.reports.formatting import rendered
from leukoscope.synthetic import EXAMPLES_PER_CLASS, PHANTOM_LABELS, draw_cell, example_cell

APP = "app.py"
LIST = "models.txt"
REQUIREMENTS = "requirements.txt"
PACKAGE = "src/leukoscope"
PAGE = "index.html"
SCRIPT = "leukoscope.js"
SETTINGS = "release.json"
STYLE = "page.css"  # the demo's own
VIEW = "view.js"  # the demo's own
MODEL = "model"
EXAMPLES_FOLDER = "examples"
RUNTIME = "ort"
PYTHON_VERSION = "3.12"
# What ZeroGPU Spaces run; torchvision's minor version is torch's plus 15.
ZERO_GPU_VERSIONS = {"torch": ">=2.8,<2.12", "torchvision": ">=0.23,<0.27"}
# What only training, measuring and the command line run.
_LEFT_OUT = (
    *("__pycache__", "*.pyi", "__main__.py", "api.py", "audit.py", "benchmark.py", "cli", "hub", "protocol.py"),
    *("training", "assess.py", "augmentation.py", "build.py", "card.py", "evaluate.py", "robustness.py"),
    *("ray_scoring.py", "recipes.py", "thresholds.py"),
)
_NOT_NEEDED = ("accelerate", "evaluate", "transformers", "typer")
ONNXRUNTIME_WEB = "1.30.0"
RUNTIME_URL = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{ONNXRUNTIME_WEB}/dist"
# SHA-256 of the two files of its npm package that a page loads.
RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


@dataclass(frozen=True)
class SpaceModel:
    """A model that a Space offers, `owner/name` or `owner/name@revision`, with its `files` in the repository.

    Without a revision the Space follows its main branch; `commit` is what the revision names today, else "".
    """

    name: str
    files: tuple[str, ...]
    commit: str

    @property
    def id(self) -> str:
        """The repository."""
        return self.name.partition("@")[0]


def find_model(name: str) -> SpaceModel:
    """Find a model to offer on the Hub, `owner/name[@revision]`.

    Raises:
        LeukoscopeError: it is not there, or cannot be loaded.
    """
    hub_id, revision = parse_hub_id(name)
    try:
        info = hub_model_info(hub_id, revision)
    except HubUnreachable as error:
        raise ReleaseError(f"{name}: the Hub cannot be reached ({error}); check the network") from None
    except HfHubHTTPError as error:
        raise ReleaseError(f"{name}: {reason(error)}") from None
    there = {file.rfilename for file in info.siblings or ()}
    files = tuple(file for file in RELEASE_FILES if file in there)
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if file not in files]
    if missing:
        raise ReleaseError(f"{name}: has no {missing[0]}, so the Space could not load it; name another model")
    return SpaceModel(name, files, str(info.sha) if revision else "")


def _holds(folder: Path, *names: str) -> bool:
    """Whether a folder holds all of these files and folders."""
    return all((folder / name).exists() for name in names)


@contextmanager
def _space_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out`, completely or not at all; of what is there, only our own Space is replaced."""
    is_space = not is_git_clone(out) and (_holds(out, APP, LIST, PACKAGE) or _holds(out, PAGE, SCRIPT, SETTINGS))
    if out.exists() and not is_space and (not out.is_dir() or any(out.iterdir())):
        raise ReleaseError(f"{out}: exists and was not made by this command; name a new folder")
    with disk_errors(f"{out}: the Space cannot be written there", "name another folder"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out) as folder:
            yield folder


def write_space(models: Sequence[SpaceModel], out: Path, *, title: str = "Leukoscope") -> Path:
    """Write the folder of a Space that runs the demo, completely or not at all.

    Its page opens with the first of the models.

    Raises:
        LeukoscopeError: another folder, or one that cannot be written.
    """
    with _space_folder(out) as folder:
        shutil.copytree(Path(leukoscope.__file__).parent, folder / PACKAGE, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        for name in (APP, "LICENSE"):
            shutil.copyfile(resource_file(name), folder / name)
        (folder / LIST).write_text("".join(f"{model.name}\n" for model in models), encoding="utf-8")
        requirements = space_requirements(resource_file(REQUIREMENTS).read_text(encoding="utf-8"))
        (folder / REQUIREMENTS).write_text(requirements, encoding="utf-8")
        page = rendered(
            resource_file("model_card/space.md"),
            title=title,
            sdk_version=version("gradio"),
            python_version=PYTHON_VERSION,
            app_file=APP,
            models=models,
        )
        (folder / "README.md").write_text(page, encoding="utf-8")
    return out


def space_requirements(ours: str) -> str:
    """What a Space installs: our requirements without those that the demo never imports, in versions that it runs.

    Raises:
        LeukoscopeError: requirements that lack one that has to be changed.
    """
    lines = [line for line in ours.splitlines() if line and not line.startswith("#")]
    of_package = {re.split(r"[<>=\[]", line)[0]: line for line in lines}
    for package in ("torch", "torchvision", "gradio"):
        if package not in of_package:
            raise ReleaseError(f"{REQUIREMENTS}: does not name {package}; restore it from the repository")
    bounds = {**ZERO_GPU_VERSIONS, "gradio": f"[mcp]=={version('gradio')}"}
    of_package |= {package: package + bound for package, bound in bounds.items()}
    return "".join(f"{line}\n" for package, line in of_package.items() if package not in _NOT_NEEDED)


def write_static_space(
    release: ReleaseInfo, out: Path, *, title: str = "Leukoscope", runtime: Path | None = None
) -> Path:
    """Write the folder of a static Space, whose page computes a release of this machine in the visitor's browser.

    `runtime` is the folder of the npm package onnxruntime-web; None downloads its two files.

    Raises:
        LeukoscopeError: as `write_space`; no graph of the network, an unknown resampling filter, or no runtime.
    """
    assert release.folder is not None
    if release.preprocessing.interpolation not in ("bilinear", "bicubic", "lanczos"):
        raise ReleaseError(
            f"{release.name}: resizes pictures by {release.preprocessing.interpolation!r}; the page knows bilinear, "
            "bicubic and lanczos — build a Space without --static"
        )
    runtime_files = {file: _runtime_file(file, runtime) for file in RUNTIME_FILES}
    name = release.name if release.revision else folder_name(release.folder)
    hub_id = ""
    if release.revision:
        hub_id = release.name.partition("@")[0]
    with _space_folder(out) as folder:
        write_onnx(replace(release, name=name), folder / MODEL)  # publishes no path of this machine
        (folder / MODEL / CARD_FILE).unlink()  # a Space has a README.md of its own
        (folder / SETTINGS).write_text(json.dumps(_settings(release, name)) + "\n", encoding="utf-8")
        (folder / EXAMPLES_FOLDER).mkdir()
        kinds = product(PHANTOM_LABELS, range(EXAMPLES_PER_CLASS))
        examples = [(label, f"{EXAMPLES_FOLDER}/{label}-{cell}.png") for label, cell in kinds]
        for number, (label, file) in enumerate(examples):
            if release.takes_cut_outs is False:
                pixels = draw_cell(label, subject=number, background="smear").image
            else:
                pixels = example_cell(label, number % EXAMPLES_PER_CLASS)
            Image.fromarray(pixels).save(folder / file)
        (folder / RUNTIME).mkdir()
        for file, content in runtime_files.items():
            (folder / RUNTIME / file).write_bytes(content)
        here = Path(__file__).parent
        shutil.copyfile(here / "static_space.js", folder / SCRIPT)
        web = Path(leukoscope.__file__).parent / "web"
        shutil.copyfile(web / STYLE, folder / STYLE)
        stage = (web / VIEW).read_text(encoding="utf-8")  # in the demo, the body of such a function
        (folder / VIEW).write_text(f"export default (element, trigger, watch) => {{\n{stage}}}\n", encoding="utf-8")
        megabytes = f"{(folder / MODEL / ONNX_GRAPH).stat().st_size / 1e6:.0f}"
        card = ""
        if hub_id:
            card = f"https://huggingface.co/{hub_id}"
        description = {"title": title, "model": name, "hub_id": hub_id, "revision": release.revision}
        page = {
            **description,
            "card": card,
            "megabytes": megabytes,
            "examples": examples,
            "question": text.HEADLINE_QUESTION,
        }
        (folder / PAGE).write_text(rendered(here / "static_space.html", **page), encoding="utf-8")
        readme = rendered(here / "static_space.md", runtime=ONNXRUNTIME_WEB, **description)
        (folder / "README.md").write_text(readme, encoding="utf-8")
    return out


def _settings(release: ReleaseInfo, name: str) -> dict[str, Any]:
    """What the page's script reads."""
    preprocessing = release.preprocessing
    thresholds = Thresholds.from_metrics(release.metrics)
    return {
        "model": name,
        "revision": release.revision,
        "notice": RESEARCH_NOTICE,
        "labels": release.labels,
        "preprocessing": asdict(preprocessing) | {"resized_side": preprocessing.resized_side},
        "abstain_below": thresholds.abstain_below,
        "least_on_cell": thresholds.least_on_cell,
        "picture_side": thresholds.picture_side,
        "side_may_differ": SIDE_MAY_DIFFER,
        "ood": _detector((release.folder or Path()) / OOD_FILE),
        "reasons": REASON_TEXTS,
        "colours": map_colours(256).tolist(),
        "words": _words(release),
    }


def _words(release: ReleaseInfo) -> dict[str, Any]:
    """What the page says of a prediction, in the demo's words."""
    metrics = release.metrics
    labels = release.labels
    measured = text.measured_on_people(metrics)
    starts = ("Probably", "Looks like")
    return {
        "meanings": {label: text.MEANINGS.get(label, "") for label in labels},
        "pills": {label: _pills(label, starts) for label in labels},
        "firm": text.FIRM,
        "soft": "" if measured else f"The probability says little: {text.unmeasured(metrics)}.",
        "short": text.SHORT,
        "recall": text.recall_text(metrics),
        "trust": {outcome: text.trust_text(Decision(outcome), metrics) for outcome in (*labels, OUT_OF_DISTRIBUTION)},
        "warnings": text.warnings(metrics, has_detector=(release.folder or Path()).joinpath(OOD_FILE).is_file()),
        "caveat": text.MAP_CAVEAT,
        "maps_failed": (metrics.get("heat_maps") or {}).get("passed") is False,
    }


def _pills(label: str, starts: Sequence[str]) -> list[str]:
    """What the page calls a class, from the least to the most certain."""
    return [f"{start} {text.one(label)}" for start in starts]


def _detector(file: Path) -> dict[str, Any] | None:
    """What the page needs of a release's OOD detector; None where it has none."""
    if not file.is_file():
        return None
    detector = OodDetector.load(file)
    correlation = detector.correlation.astype(np.float64)
    groups = [
        {"name": group, "first": columns.start, "inverse": np.linalg.inv(correlation[columns, columns]).tolist()}
        for group, columns in STATISTIC_GROUPS.items()
    ]
    arrays = {key: getattr(detector, key).tolist() for key in ("mean", "deviation", "limit")}
    return arrays | {"inverse": np.linalg.inv(correlation).tolist(), "groups": groups}


def _runtime_file(name: str, package: Path | None) -> bytes:
    """One of `RUNTIME_FILES`, from an installed npm package or from the network, whose content is known."""
    source = f"{RUNTIME_URL}/{name}"
    if package is not None:
        source = str(package / "dist" / name)
    fix = f"npm install onnxruntime-web@{ONNXRUNTIME_WEB}, and name its folder with --onnxruntime_web"
    try:
        if package is None:
            with urllib.request.urlopen(source, timeout=60) as answer:
                content = answer.read()
        else:
            content = Path(source).read_bytes()
    except (OSError, HTTPException) as error:  # the latter where a download is cut off
        # A server's words, or the system's.
        cause = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ReleaseError(f"{source}: cannot be read ({cause}); {fix}") from None
    if sha256(content).hexdigest() != RUNTIME_FILES[name]:
        raise ReleaseError(f"{source}: is not the file of onnxruntime-web {ONNXRUNTIME_WEB}; {fix}")
    return bytes(content)


def push_space(folder: Path, space: str, *, private: bool = False) -> Published:
    """Put a folder of `write_space` or `write_static_space` on the Hub as the Space `owner/name`, in one commit."""
    sdk: Literal["gradio", "static"] = "gradio"
    files = [APP, LIST, REQUIREMENTS, "LICENSE"]
    folders = [PACKAGE]
    if (folder / PAGE).is_file():
        sdk = "static"
        files = [PAGE, SCRIPT, SETTINGS, STYLE, VIEW]
        folders = [MODEL, EXAMPLES_FOLDER, RUNTIME]
    to = Destination(space, private=private, kind="space", sdk=sdk)
    to.require_usable()

    # Other files of the Space's owner are never deleted.
    ours = (*files, "README.md", *(f"{name}/*" for name in folders))
    return upload(
        folder, to, replaces=ours, hint=f"The Space is whole in {folder}; the same command goes on from there"
    )
