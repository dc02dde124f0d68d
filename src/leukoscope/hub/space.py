"""Write the folder of a Space and publish it: the demo with its package, or a static page.

The demo's folder runs anywhere by `pip install -r requirements.txt` and `python app.py`. The static page predicts with
a release in the visitor's browser, so that no picture leaves it; any file server will do.
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
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import leukoscope
from leukoscope import ReleaseError
from leukoscope.files import atomic_folder, disk_errors, is_git_clone, resource_file
from leukoscope.hub.publish import Destination, Published, reason, upload
from leukoscope.inference.graph import ONNX_GRAPH, write_onnx
from leukoscope.inference.ood import STATISTIC_GROUPS, OodDetector
from leukoscope.inference.prediction import ABSTAIN, OUT_OF_DISTRIBUTION, REASON_TEXTS, SIDE_MAY_DIFFER, Thresholds
from leukoscope.models.hub_download import RELEASE_FILES, HubUnreachable, hub_model_info, parse_hub_id
from leukoscope.models.release import CONFIG_FILE, OOD_FILE, WEIGHTS_FILE, ReleaseInfo, folder_name
from leukoscope.reports import words
from leukoscope.reports.tables import rendered
from leukoscope.synthetic import EXAMPLE_CELLS, EXAMPLE_SMEARS, example_cell, smear_picture

APP_FILE = "app.py"
MODEL_LIST = "models.txt"
REQUIREMENTS_FILE = "requirements.txt"
PACKAGE_FOLDER = "src/leukoscope"
PYTHON_VERSION = "3.12"
# What ZeroGPU Spaces run; torchvision's minor version is torch's plus 15.
ZERO_GPU_VERSIONS = {"torch": ">=2.8,<2.12", "torchvision": ">=0.23,<0.27"}
STATIC_PAGE = "index.html"
STATIC_FILES = {".html": STATIC_PAGE, ".js": "leukoscope.js", ".css": "leukoscope.css", ".md": "README.md"}
STATIC_SETTINGS = "release.json"
STATIC_FILTERS = ("bilinear", "bicubic", "lanczos")
MODEL_FOLDER = "model"
EXAMPLES_FOLDER = "examples"
RUNTIME_FOLDER = "ort"
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


@contextmanager
def _space_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out`, completely or not at all; of what is there, only our own Space is replaced."""
    names = {path.name for path in out.glob("*")}
    is_space = {APP_FILE, MODEL_LIST, "src"} <= names or {STATIC_PAGE, STATIC_SETTINGS} <= names
    if out.exists() and (is_git_clone(out) or not is_space) and (not out.is_dir() or names):
        raise ReleaseError(f"{out}: exists and was not made by this command; name a new folder")
    with disk_errors(f"{out}: the Space cannot be written there", "name another folder"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(out) as folder:
            yield folder


def write_space(models: Sequence[SpaceModel], out: Path, *, title: str = "Leukoscope") -> Path:
    """Write the folder of a Space that runs the demo, completely or not at all.

    It holds the whole package. Its page opens with the first of the models.

    Raises:
        LeukoscopeError: another folder, or one that cannot be written.
    """
    with _space_folder(out) as folder:
        package = Path(leukoscope.__file__).parent
        shutil.copytree(package, folder / PACKAGE_FOLDER, ignore=shutil.ignore_patterns("__pycache__"))
        for name in (APP_FILE, "LICENSE"):
            shutil.copyfile(resource_file(name), folder / name)
        (folder / MODEL_LIST).write_text("".join(f"{model.name}\n" for model in models), encoding="utf-8")
        requirements = space_requirements(resource_file(REQUIREMENTS_FILE).read_text(encoding="utf-8"))
        (folder / REQUIREMENTS_FILE).write_text(requirements, encoding="utf-8")
        page = rendered(
            resource_file("model_card/space.md"),
            title=title,
            sdk_version=version("gradio"),
            python_version=PYTHON_VERSION,
            app_file=APP_FILE,
            models=models,
        )
        (folder / "README.md").write_text(page, encoding="utf-8")
    return out


def space_requirements(ours: str) -> str:
    """What a Space installs: our requirements, in the versions that ZeroGPU runs and of this Gradio.

    Raises:
        LeukoscopeError: requirements that lack one that has to be changed.
    """
    requirements = ours
    for package, bound in {**ZERO_GPU_VERSIONS, "gradio": f"[mcp]=={version('gradio')}"}.items():
        requirements, count = re.subn(rf"^{package}\b[^-\n]*$", f"{package}{bound}", requirements, flags=re.MULTILINE)
        if not count:
            raise ReleaseError(f"{REQUIREMENTS_FILE}: does not name {package}; restore it from the repository")
    return requirements


def write_static_space(
    release: ReleaseInfo, out: Path, *, title: str = "Leukoscope", runtime: Path | None = None
) -> Path:
    """Write the folder of a static Space, whose page predicts with a release in the visitor's browser.

    `runtime` is the folder of the npm package onnxruntime-web; None downloads its two files.

    Raises:
        LeukoscopeError: as `write_space`; no graph of the network, an unknown resampling filter, or no runtime.
    """
    if release.preprocessing.interpolation not in STATIC_FILTERS:
        raise ReleaseError(
            f"{release.name}: resizes pictures by {release.preprocessing.interpolation!r}; the page knows "
            f"{', '.join(STATIC_FILTERS)} — build a Space without --static"
        )
    name = release.name.partition("@")[0]
    if release.folder and not release.revision:
        name = folder_name(release.folder)  # publishes no path of this machine
    runtime_files = {file: _runtime_file(file, runtime) for file in RUNTIME_FILES}
    with _space_folder(out) as folder:
        write_onnx(replace(release, name=name), folder / MODEL_FOLDER)
        settings = _static_settings(release)
        (folder / STATIC_SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        (folder / RUNTIME_FOLDER).mkdir()
        for file, content in runtime_files.items():
            (folder / RUNTIME_FOLDER / file).write_bytes(content)
        values = {
            "title": title,
            "name": name,
            "revision": release.revision,
            "megabytes": round((folder / MODEL_FOLDER / ONNX_GRAPH).stat().st_size / 1e6),
            "runtime": ONNXRUNTIME_WEB,
            "labels": release.labels,
            "classes": words.meanings_text(release.labels),
            "trained_on": words.model_text(release.metrics),
            "warnings": words.warnings(release.metrics, has_detector=settings["ood"] is not None),
            "rows": words.trust_rows(release.metrics),
            "examples": _write_examples(folder, release),
        }
        for suffix, file in STATIC_FILES.items():
            page = rendered(Path(__file__).with_name(f"static_space{suffix}"), **values)
            (folder / file).write_text(page, encoding="utf-8")
    return out


def _write_examples(folder: Path, release: ReleaseInfo) -> dict[str, str]:
    """Write the synthetic pictures that the demo offers for this release, too: file → label."""
    pictures = [(label, example_cell(label, number)) for label, number in EXAMPLE_CELLS]
    if release.takes_cut_outs is False:
        pictures = [(label, smear_picture(label, number)) for label, number in EXAMPLE_SMEARS]
    (folder / EXAMPLES_FOLDER).mkdir()
    examples = {}
    for number, (label, pixels) in enumerate(pictures):
        file = f"{EXAMPLES_FOLDER}/{number}.png"
        Image.fromarray(pixels).save(folder / file)
        examples[file] = label
    return examples


def _static_settings(release: ReleaseInfo) -> dict[str, Any]:
    """What the page's script reads: how the release decides, and the words for it."""
    thresholds = Thresholds.from_metrics(release.metrics)
    outcomes = {label: f"Probably {words.one(label)}" for label in release.labels}
    return {
        "graph": f"{MODEL_FOLDER}/{ONNX_GRAPH}",
        "labels": release.labels,
        "preprocessing": asdict(release.preprocessing) | {"resized_side": release.preprocessing.resized_side},
        "abstain_below": thresholds.abstain_below,
        "picture_side": thresholds.picture_side,
        "side_may_differ": SIDE_MAY_DIFFER,
        "ood": _detector((release.folder or Path()) / OOD_FILE),
        "reasons": REASON_TEXTS,
        "verdicts": {ABSTAIN: words.SHORT_OUTCOMES[ABSTAIN], OUT_OF_DISTRIBUTION: words.FOREIGN_VERDICT, **outcomes},
    }


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
        source = (package / "dist" / name).absolute().as_uri()
    fix = f"npm install onnxruntime-web@{ONNXRUNTIME_WEB}, and name its folder with --onnxruntime_web"
    try:
        with urllib.request.urlopen(source, timeout=60) as answer:
            content = bytes(answer.read())
    except (OSError, HTTPException) as error:  # the latter where a download is cut off
        raise ReleaseError(f"{source}: cannot be read ({error}); {fix}") from None
    if sha256(content).hexdigest() != RUNTIME_FILES[name]:
        raise ReleaseError(f"{source}: is not the file of onnxruntime-web {ONNXRUNTIME_WEB}; {fix}")
    return content


def push_space(folder: Path, space: str, *, private: bool = False) -> Published:
    """Put a folder of `write_space` or `write_static_space` on the Hub as the Space `owner/name`, in one commit."""
    sdk: Literal["gradio", "static"] = "static" if (folder / STATIC_PAGE).is_file() else "gradio"
    to = Destination(space, private=private, kind="space", sdk=sdk)
    to.require_usable()

    # Other files of the Space's owner are never deleted.
    ours = [pattern for path in folder.iterdir() for pattern in (path.name, f"{path.name}/*")]
    return upload(
        folder, to, replaces=ours, hint=f"The Space is whole in {folder}; the same command goes on from there"
    )
