"""A Space's folder holds all that it needs, says so in words the Hub understands, and is published in one commit."""

from __future__ import annotations

import json
from dataclasses import replace
from http.client import IncompleteRead
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hub_server import READ_TOKEN, Fault, Hub
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli import app
from leukoscope.hub.publish import Destination, publish
from leukoscope.hub.space import SpaceModel, find_model, push_space, space_requirements, write_space, write_static_space
from leukoscope.models.release import read_release

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = SpaceModel("lab/cells@v1", ("config.json", "model.safetensors"), COMMIT)
FOLLOWED = SpaceModel("lab/others", ("config.json", "model.safetensors", "metrics.json"), "")
# From the Hub's reference of a Space's front matter.
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license"),
    *("short_description", "tags", "models", "preload_from_hub"),
}


@pytest.fixture
def space(tmp_path: Path) -> Path:
    return write_space([PINNED, FOLLOWED], tmp_path / "space", title='Cells: "mine"')


@pytest.fixture
def model(hub: Hub, whole_release: Path) -> str:
    """A release on the Hub, in its first version."""
    publish(whole_release, Destination("lab/cells", tag="v1"))
    return "lab/cells"


def front_matter(folder: Path) -> dict[str, Any]:
    _, block, _ = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(block)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- the folder -----------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_hub_takes_and_says_what_it_offers_and_what_it_is_for(space: Path) -> None:
    front = front_matter(space)
    assert set(front) == KEYS
    assert front["title"] == 'Cells: "mine"'
    assert {front["colorFrom"], front["colorTo"]} <= COLOURS
    assert (front["sdk"], front["sdk_version"]) == ("gradio", version("gradio"))
    assert isinstance(front["python_version"], str)
    assert (space / front["app_file"]).is_file()
    # The Hub refuses a commit whose card says more.
    assert len(front["short_description"]) <= 60
    assert front["models"] == ["lab/cells", "lab/others"]
    assert front["preload_from_hub"] == [
        f"lab/cells config.json,model.safetensors {COMMIT}",
        "lab/others config.json,model.safetensors,metrics.json",
    ]
    page = (space / "README.md").read_text()
    assert RESEARCH_NOTICE in page
    assert "[lab/cells@v1](https://huggingface.co/lab/cells), pinned to commit 0123456789ab\n" in page
    assert "[lab/others](https://huggingface.co/lab/others)\n" in page
    assert (space / "models.txt").read_text() == "lab/cells@v1\nlab/others\n"


def test_the_folder_holds_the_app_and_the_whole_package(space: Path) -> None:
    package = {name for name in files(space) if name.startswith("src/leukoscope/")}
    assert files(space) - package == {"README.md", "LICENSE", "app.py", "models.txt", "requirements.txt"}
    assert (space / "app.py").read_bytes() == (ROOT / "app.py").read_bytes()
    ours = {f"src/leukoscope/{name}" for name in files(ROOT / "src/leukoscope") if "__pycache__" not in name}
    assert package == ours


def test_requirements_are_ours_in_the_versions_that_the_space_runs() -> None:
    ours = (ROOT / "requirements.txt").read_text()
    theirs = space_requirements(ours)
    changed = set(theirs.splitlines()) - set(ours.splitlines())
    assert changed == {f"gradio[mcp]=={version('gradio')}", "torch>=2.8,<2.12", "torchvision>=0.23,<0.27"}
    assert len(theirs.splitlines()) == len(ours.splitlines())


def test_a_list_without_torch_is_refused() -> None:
    with pytest.raises(LeukoscopeError, match=r"^requirements.txt: does not name torch; restore it"):
        space_requirements("torchvision>=0.29\ngradio>=6\ntorch-audio>=1\n")


def test_an_earlier_space_is_replaced_whole(space: Path) -> None:
    (space / "src/leukoscope/gone.py").write_text("")
    write_space([FOLLOWED], space)
    assert "src/leukoscope/gone.py" not in files(space)
    assert front_matter(space)["title"] == "Leukoscope"


@pytest.mark.parametrize("kept", ["thesis/chapter.txt", "thesis", "space/.git"])
def test_what_is_no_space_or_a_clone_of_one_is_left_alone(space: Path, tmp_path: Path, kept: str) -> None:
    out = tmp_path / kept.partition("/")[0]
    (tmp_path / kept).parent.mkdir(exist_ok=True)
    (tmp_path / kept).write_text("years of work")
    with pytest.raises(LeukoscopeError, match=f"^{out}: exists and was not made by this command"):
        write_space([PINNED], out)
    assert (tmp_path / kept).read_text() == "years of work"


# --- a static page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["a/b", "--onnxruntime_web", "node"], "--onnxruntime_web node: is for a static page; add --static"),
        (["a/b", "c/d", "--static"], "--static a/b c/d: a static page predicts with one model; name one"),
        (["src", "--static"], "src: has no config.json"),
        (["a/b", "src"], "src: is a folder, and a Space loads its models from the Hub; publish it first"),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, words: list[str], problem: str) -> None:
    done = run(*words, "--output", str(tmp_path / "page"))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {problem}")
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("content", [None, b"another version"])
def test_a_runtime_that_is_missing_or_another_is_refused(tiny_release: Path, tmp_path: Path, content: Any) -> None:
    file = tmp_path / "node" / "dist" / "ort.wasm.bundle.min.mjs"
    file.parent.mkdir(parents=True)
    if content:
        file.write_bytes(content)
    reason = (
        "is not the file of onnxruntime-web 1.30.0" if content else r"cannot be read \(.*No such file or directory.*\)"
    )
    with pytest.raises(LeukoscopeError, match=rf"^{file.as_uri()}: {reason}; npm install onnxruntime-web@1.30.0, and"):
        write_static_space(read_release(tiny_release), tmp_path / "page", runtime=tmp_path / "node")
    assert not (tmp_path / "page").exists()


def test_a_filter_that_the_page_does_not_know_is_refused(tiny_release: Path, tmp_path: Path) -> None:
    release = read_release(tiny_release)
    release = replace(release, preprocessing=replace(release.preprocessing, interpolation="hamming"))
    with pytest.raises(LeukoscopeError, match="resizes pictures by 'hamming'; the page knows bilinear, bicubic"):
        write_static_space(release, tmp_path / "page")


def test_a_download_that_is_cut_off_is_said(
    tiny_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any, **__: Any) -> None:
        raise IncompleteRead(b"too short", 1000)

    monkeypatch.setattr("urllib.request.urlopen", cut_off)
    with pytest.raises(LeukoscopeError, match=r"ort.wasm.bundle.min.mjs: cannot be read \(IncompleteRead\("):
        write_static_space(read_release(tiny_release), tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
def test_a_static_space_is_published_whole_and_as_static(
    hub: Hub, whole_release: Path, npm_packages: Path, tmp_path: Path
) -> None:
    (whole_release / "ood.safetensors").unlink()
    publish(whole_release, Destination("lab/cells", tag="v1"))
    runtime = str(npm_packages / "node_modules" / "onnxruntime-web")
    words = ["lab/cells@v1", "--static", "--onnxruntime_web", runtime, "--output", str(tmp_path / "page")]
    done = run(*words, "--push", "lab/page")
    assert done.exit_code == 0, done.output
    assert f"space: {tmp_path / 'page'} (try it: cd {tmp_path / 'page'} && python -m http.server" in done.output
    front = front_matter(tmp_path / "page")
    assert (front["sdk"], front["app_file"], front["models"]) == ("static", "index.html", ["lab/cells"])
    assert len(front["short_description"]) <= 60
    assert set(hub.repository("spaces/lab/page").at("main").files) - {".gitattributes"} == files(tmp_path / "page")
    assert hub.repository("lab/cells").tags["v1"][:12] in (tmp_path / "page" / "README.md").read_text()
    page = (tmp_path / "page" / "index.html").read_text()
    assert "https://huggingface.co/lab/cells" in page and RESEARCH_NOTICE in page
    assert json.loads((tmp_path / "page" / "release.json").read_text())["ood"] is None
    # No path of the machine that made it.
    for path in (tmp_path / "page").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


# --- the models -----------------------------------------------------------------------------------------------------


def test_a_named_revision_is_pinned_and_another_followed(hub: Hub, model: str) -> None:
    commit = hub.repository("lab/cells").tags["v1"]
    wanted = ("config.json", "model.safetensors", "metrics.json", "README.md", "ood.safetensors")
    assert find_model("lab/cells@v1") == SpaceModel("lab/cells@v1", wanted, commit)
    assert find_model("lab/cells") == SpaceModel("lab/cells", wanted, "")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("cells", "cells: is neither a folder nor a Hub id"),
        ("lab/none", "lab/none: the Hub has no such repository, or none that your token may see; check the name and"),
        ("lab/cells@v9", "lab/cells@v9: the repository has no such revision; name another one"),
        ("lab/empty", "lab/empty: has no config.json, so the Space could not load it"),
    ],
)
def test_a_model_that_cannot_be_offered_is_refused(hub: Hub, model: str, name: str, problem: str) -> None:
    hub.storage.create("lab/empty", private=False)
    with pytest.raises(LeukoscopeError, match=f"^{problem}"):
        find_model(name)


def test_without_a_network_it_is_said(hub: Hub, model: str) -> None:
    hub.faults.append(Fault("GET .*", status=503))
    with pytest.raises(LeukoscopeError, match=r"^lab/cells: the Hub cannot be reached \(it answers HTTP 503\)"):
        find_model("lab/cells")


# --- publishing -----------------------------------------------------------------------------------------------------


def test_a_space_is_published_in_one_commit_and_only_once_and_its_owners_files_stay(hub: Hub, space: Path) -> None:
    earlier = [space / "src/leukoscope/old.py", space / "mine.txt"]
    for file in earlier:
        file.touch()
    first = push_space(space, "lab/demo")
    assert first.address == f"{hub.url}/spaces/lab/demo"
    there = hub.repository("spaces/lab/demo")
    assert [commit.title for commit in there.history("main")] == ["Publish Space", "initial commit"]
    assert set(there.at("main").files) - {".gitattributes"} == files(space)
    assert "lab/demo" not in hub.storage.repositories
    again = push_space(space, "lab/demo")
    assert again.commit == first.commit
    for file in earlier:
        file.unlink()
    push_space(space, "lab/demo")
    assert set(there.at("main").files) - {".gitattributes"} == {*files(space), "mine.txt"}


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["release", "space", *words])


def test_the_command_builds_and_publishes(hub: Hub, model: str, tmp_path: Path) -> None:
    out = tmp_path / "my space"
    hub.requests.clear()
    assert run("lab/cells", "--output", str(out)).exit_code == 0
    assert all(request.startswith("GET") for request in hub.requests), "nothing is uploaded unasked"
    done = run("lab/cells@v1", "lab/cells", "--output", str(out), "--push", "lab/demo")
    assert done.exit_code == 0, done.output
    assert f"space: {out} (try it: cd '{out}' && python app.py)" in done.output
    assert f"published: {hub.url}/spaces/lab/demo (commit " in done.output
    assert RESEARCH_NOTICE in done.output
    assert front_matter(out)["models"] == ["lab/cells"]


def test_the_command_of_a_failed_push_goes_on(
    hub: Hub, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    words = ["lab/cells", "--output", str(tmp_path / "space"), "--push", "lab/demo", "--private"]
    failed = run(*words)
    assert failed.exit_code == 1
    assert "lab/demo: publishing failed: your token may not write there" in failed.output
    assert f"The Space is whole in {tmp_path}/space; the same command goes on from there" in failed.output
    monkeypatch.setenv("HF_TOKEN", "hf_may_write")
    assert run(*words).exit_code == 0
    assert hub.repository("spaces/lab/demo").private
