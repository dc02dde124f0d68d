"""Write the folder of a Space and publish it: the demo with what it needs of the package, or a static page.

The demo's folder runs anywhere by `pip install -r requirements.txt` and `python app.py`. The static page computes
releases in the visitor's browser, so that no picture leaves it; any file server will do.
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
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

import leukoscope
from leukoscope import RESEARCH_NOTICE, ReleaseError
from leukoscope.data.images import is_dark
from leukoscope.data.registry import cells_of
from leukoscope.files import atomic_folder, disk_errors, is_git_clone, resource_file
from leukoscope.hub.publish import Destination, Published, reason, upload
from leukoscope.inference.gradcam import FRAME_RGB, OUTLINE_RGB, map_colours
from leukoscope.inference.graph import ONNX_GRAPH, write_onnx
from leukoscope.inference.ood import STATISTIC_GROUPS, OodDetector
from leukoscope.inference.prediction import (
    ABSTAIN,
    OUT_OF_DISTRIBUTION,
    REASON_TEXTS,
    SIDE_MAY_DIFFER,
    Decision,
    Thresholds,
)
from leukoscope.inference.smear import colour_place
from leukoscope.models.hub_download import RELEASE_FILES, HubUnreachable, hub_model_info, parse_hub_id
from leukoscope.models.map_check import MapCheck
from leukoscope.models.release import CARD_FILE, CONFIG_FILE, OOD_FILE, WEIGHTS_FILE, ReleaseInfo, folder_name
from leukoscope.reports import text, trust
from leukoscope.reports.formatting import rendered
from leukoscope.synthetic import EXAMPLE_CELLS, EXAMPLE_SMEARS, example_cell, smear_picture

APP_FILE = "app.py"
MODEL_LIST = "models.txt"
REQUIREMENTS_FILE = "requirements.txt"
PACKAGE_FOLDER = "src/leukoscope"
STATIC_PAGE = "index.html"
STATIC_SCRIPT = "leukoscope.js"
STATIC_SETTINGS = "releases.json"
PAGE_STYLE = "page.css"  # the demo's own
VIEW_SCRIPT = "view.js"  # the demo's own
MODELS_FOLDER = "models"
EXAMPLES_FOLDER = "examples"
RUNTIME_FOLDER = "ort"
FONTS_FOLDER = "fonts"
FONT_STYLE = "fonts.css"
FONT_LICENCE = "OFL.md"
FONT_FILES = ("IBMPlexSans-Regular.woff2", "IBMPlexSans-Bold.woff2")
"""Of the package gradio, which the demo shows, too."""
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
    is_demo = _holds(out, APP_FILE, MODEL_LIST, PACKAGE_FOLDER)
    is_static_page = _holds(out, STATIC_PAGE, STATIC_SCRIPT, STATIC_SETTINGS)
    is_space = not is_git_clone(out) and (is_demo or is_static_page)
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
        shutil.copytree(
            Path(leukoscope.__file__).parent, folder / PACKAGE_FOLDER, ignore=shutil.ignore_patterns(*_LEFT_OUT)
        )
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
    """What a Space installs: our requirements without those that the demo never imports, in versions that it runs.

    Raises:
        LeukoscopeError: requirements that lack one that has to be changed.
    """
    lines = [line for line in ours.splitlines() if line and not line.startswith("#")]
    of_package = {re.split(r"[<>=\[]", line)[0]: line for line in lines}
    for package in ("torch", "torchvision", "gradio"):
        if package not in of_package:
            raise ReleaseError(f"{REQUIREMENTS_FILE}: does not name {package}; restore it from the repository")
    bounds = {**ZERO_GPU_VERSIONS, "gradio": f"[mcp]=={version('gradio')}"}
    of_package |= {package: package + bound for package, bound in bounds.items()}
    return "".join(f"{line}\n" for package, line in of_package.items() if package not in _NOT_NEEDED)


def write_static_space(
    releases: Sequence[ReleaseInfo], out: Path, *, title: str = "Leukoscope", runtime: Path | None = None
) -> Path:
    """Write the folder of a static Space, whose page computes releases of this machine in the visitor's browser.

    The first release answers when the page is opened; the graph of another is downloaded when a visitor chooses it.
    `runtime` is the folder of the npm package onnxruntime-web; None downloads its two files.

    Raises:
        LeukoscopeError: as `write_space`; two releases of one name, no graph of a network, an unknown resampling
            filter, or no runtime.
    """
    for release in releases:
        if release.preprocessing.interpolation not in ("bilinear", "bicubic", "lanczos"):
            raise ReleaseError(
                f"{release.name}: resizes pictures by {release.preprocessing.interpolation!r}; the page knows "
                "bilinear, bicubic and lanczos — build a Space without --static"
            )
    names = [_public_name(release) for release in releases]
    folders = [f"{MODELS_FOLDER}/{name.rpartition('/')[2]}" for name in names]
    for folder_of_model in folders:
        if folders.count(folder_of_model) > 1:
            raise ReleaseError(f"{folder_of_model.rpartition('/')[2]}: two models have this name; name each once")
    runtime_files = {file: _runtime_file(file, runtime) for file in RUNTIME_FILES}
    here = Path(__file__).parent
    with _space_folder(out) as folder:
        models = []
        for release, name, model_folder in zip(releases, names, folders, strict=True):
            write_onnx(replace(release, name=name), folder / model_folder)  # publishes no path of this machine
            (folder / model_folder / CARD_FILE).unlink()  # a Space has a README.md of its own
            megabytes = round((folder / model_folder / ONNX_GRAPH).stat().st_size / 1e6)
            where = {"folder": model_folder, "megabytes": max(megabytes, 1)}
            models.append(_model_settings(release, name) | where)
        settings = {**_shared_settings(), "models": models}
        (folder / STATIC_SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        (folder / RUNTIME_FOLDER).mkdir()
        for file, content in runtime_files.items():
            (folder / RUNTIME_FOLDER / file).write_bytes(content)
        shutil.copyfile(here / "static_space.js", folder / STATIC_SCRIPT)
        web = Path(leukoscope.__file__).parent / "web"
        shutil.copyfile(web / PAGE_STYLE, folder / PAGE_STYLE)
        stage = (web / VIEW_SCRIPT).read_text(encoding="utf-8")  # in the demo, the body of such a function
        (folder / VIEW_SCRIPT).write_text(
            f"export default (element, trigger, watch) => {{\n{stage}}}\n", encoding="utf-8"
        )
        page = {
            "title": title,
            "fonts": _write_fonts(folder),
            "models": models,
            "examples": _write_examples(folder, releases[0]),
            "question": text.question(releases[0].labels),
            "classes": text.meanings_text(releases[0].labels),
            "runtime": ONNXRUNTIME_WEB,
        }
        (folder / STATIC_PAGE).write_text(rendered(here / "static_space.html", **page), encoding="utf-8")
        (folder / "README.md").write_text(rendered(here / "static_space.md", **page), encoding="utf-8")
    return out


def _public_name(release: ReleaseInfo) -> str:
    """What a release is called on a page: its name on the Hub, or that of its folder."""
    if release.revision:
        return release.name.partition("@")[0]
    assert release.folder is not None
    return folder_name(release.folder)


def _write_examples(folder: Path, release: ReleaseInfo) -> list[dict[str, Any]]:
    """Write the synthetic pictures that the demo offers for this release, too; label, caption and file of each."""
    (folder / EXAMPLES_FOLDER).mkdir()
    examples = []
    pictures = [(label, f"Synthetic {label}", example_cell(label, number)) for label, number in EXAMPLE_CELLS]
    if release.takes_cut_outs is False:
        pictures = [(label, f"Synthetic smear, {label}", smear_picture(label, seed)) for label, seed in EXAMPLE_SMEARS]
    for number, (label, caption, pixels) in enumerate(pictures):
        file = f"{EXAMPLES_FOLDER}/{label}-{number}.png"
        Image.fromarray(pixels).save(folder / file)
        examples.append({"label": label, "caption": caption, "file": file, "dark": is_dark(Image.fromarray(pixels))})
    return examples


def _write_fonts(folder: Path) -> list[str]:
    """Copy the demo's font with its licence, and the style that names it; the paths of its files.

    The page preloads them, and "optional" leaves it with the system's font where they come late, as a Gradio without
    these files does: words that change their font move what stands below them.
    """
    gradio = find_spec("gradio")
    assert gradio is not None and gradio.origin is not None
    source = Path(gradio.origin).parent / "templates" / "frontend" / "static" / "fonts" / "IBMPlexSans"
    (folder / FONTS_FOLDER).mkdir()
    shutil.copyfile(Path(__file__).with_name("font_licence.md"), folder / FONTS_FOLDER / FONT_LICENCE)
    rules = []
    files = []
    for file, weight in zip(FONT_FILES, (400, 700), strict=True):
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / FONTS_FOLDER / file)
            rules.append(
                f'@font-face {{ font-family: "IBM Plex Sans"; font-weight: {weight}; font-display: optional; '
                f'src: url("{FONTS_FOLDER}/{file}"); }}\n'
            )
            files.append(f"{FONTS_FOLDER}/{file}")
    (folder / FONT_STYLE).write_text("".join(rules), encoding="utf-8")
    return files


def _shared_settings() -> dict[str, Any]:
    """What the page's script reads, whichever model is asked."""
    return {
        "notice": RESEARCH_NOTICE,
        "reasons": REASON_TEXTS,
        "side_may_differ": SIDE_MAY_DIFFER,
        "colours": map_colours(256).tolist(),
        "firm": text.FIRM,
        "verdicts": {ABSTAIN: text.SHORT[ABSTAIN], OUT_OF_DISTRIBUTION: text.FOREIGN_VERDICT},
        "foreign": {"parts": text.FOREIGN_PARTS, "sentence": text.FOREIGN_SENTENCE},
        "in_training": text.in_training_text("{subject}"),
        "orientations": text.ORIENTATION_NAMES,
        "statistic_groups": text.STATISTIC_GROUP_NAMES,
        "line_colours": {"outline": OUTLINE_RGB, "frame": FRAME_RGB},
        "map_caveat": text.MAP_CAVEAT,
    }


def _model_settings(release: ReleaseInfo, name: str) -> dict[str, Any]:
    """What the page's script reads of one model: how it decides, and what is said of it in the demo's words."""
    metrics = release.metrics
    preprocessing = release.preprocessing
    thresholds = Thresholds.from_metrics(metrics)
    labels = release.labels
    detector = _detector((release.folder or Path()) / OOD_FILE)
    check = MapCheck.from_metrics(metrics)
    pills = {label: [f"{start} {text.one(label)}" for start in ("Probably", "Looks like")] for label in labels}
    return {
        "name": name,
        "short_name": text.short_name(name),
        "revision": release.revision,
        "card": f"https://huggingface.co/{name}" if release.revision else "",
        "labels": labels,
        "colour_places": [colour_place(label, labels) for label in labels],
        "preprocessing": asdict(preprocessing) | {"resized_side": preprocessing.resized_side},
        "abstain_below": thresholds.abstain_below,
        "least_on_cell": thresholds.least_on_cell,
        "picture_side": thresholds.picture_side,
        "ood": detector,
        "maps_passed": trust.maps_passed(metrics),
        "map_check": check.text,
        "training_subjects": trust.training_subjects(metrics),
        "words": {
            "question": text.question(labels),
            "classes": text.meanings_text(labels),
            "meanings": {label: text.MEANINGS.get(label, "") for label in labels},
            "cells_of": {label: cells_of(label) for label in labels},
            "pills": pills,
            "trust": {
                outcome: text.trust_text(Decision(outcome), metrics) for outcome in (*labels, OUT_OF_DISTRIBUTION)
            },
            "trust_rows": [
                {
                    "name": row.name,
                    "caveat": row.caveat,
                    "meters": [asdict(meter) | {"name": meter.name} for meter in row.meters],
                    "small_changes": row.small_changes,
                }
                for row in trust.trust_rows(metrics)
            ],
            "warnings": text.warnings(metrics, has_detector=detector is not None),
            "trained_on": text.model_text(metrics),
        },
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
    files = [APP_FILE, MODEL_LIST, REQUIREMENTS_FILE, "LICENSE"]
    folders = [PACKAGE_FOLDER]
    if (folder / STATIC_PAGE).is_file():
        sdk = "static"
        files = [STATIC_PAGE, STATIC_SCRIPT, STATIC_SETTINGS, PAGE_STYLE, FONT_STYLE, VIEW_SCRIPT]
        folders = [MODELS_FOLDER, EXAMPLES_FOLDER, RUNTIME_FOLDER, FONTS_FOLDER]
    to = Destination(space, private=private, kind="space", sdk=sdk)
    to.require_usable()

    # Other files of the Space's owner are never deleted.
    ours = (*files, "README.md", *(f"{name}/*" for name in folders))
    return upload(
        folder, to, replaces=ours, hint=f"The Space is whole in {folder}; the same command goes on from there"
    )
