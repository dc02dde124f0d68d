"""A Space's folder holds all that it needs, says so in words the Hub understands, and is published in one commit."""

from __future__ import annotations

import re
import subprocess
import sys
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
from leukoscope.hub.space import SpaceModel, find_model, push_space, space_requirements, write_space

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


def test_the_front_matter_is_what_the_hub_takes(space: Path) -> None:
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


def test_the_page_says_what_it_offers_and_what_it_is_for(space: Path) -> None:
    page = (space / "README.md").read_text()
    assert RESEARCH_NOTICE in page
    assert "[lab/cells@v1](https://huggingface.co/lab/cells), pinned to commit 0123456789ab\n" in page
    assert "[lab/others](https://huggingface.co/lab/others)\n" in page
    assert (space / "models.txt").read_text() == "lab/cells@v1\nlab/others\n"


def test_the_folder_holds_the_app_and_the_whole_package(space: Path) -> None:
    package = ROOT / "src" / "leukoscope"
    ours = {f"src/leukoscope/{name}" for name in files(package) if "__pycache__" not in name and ".pyi" not in name}
    assert files(space) == ours | {"README.md", "LICENSE", "app.py", "models.txt", "requirements.txt"}
    assert (space / "app.py").read_bytes() == (ROOT / "app.py").read_bytes()


def test_the_app_of_the_folder_needs_no_repository(space: Path) -> None:
    # The tests' own environment has the package, too, and must not be what answers.
    where = "import app, leukoscope; print(leukoscope.__file__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=space, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).resolve() == (space / "src/leukoscope/__init__.py").resolve()


def test_requirements_are_ours_within_what_spaces_run() -> None:
    ours = (ROOT / "requirements.txt").read_text()
    theirs = space_requirements(ours).splitlines()
    names = [re.split(r"[<>=]", line)[0] for line in theirs]
    assert names == [re.split(r"[<>=]", line)[0] for line in ours.splitlines() if not line.startswith("#")]
    changed = set(theirs) - set(ours.splitlines())
    assert changed == {"torch>=2.8,<2.12", "torchvision>=0.23,<0.27", f"gradio=={version('gradio')}"}


def test_a_list_without_torch_is_refused() -> None:
    with pytest.raises(LeukoscopeError, match=r"^requirements.txt: does not name torch; restore it"):
        space_requirements("torchvision>=0.29\ngradio>=6\ntorch-audio>=1\n")


def test_an_earlier_space_is_replaced_whole(space: Path) -> None:
    (space / "src/leukoscope/gone.py").write_text("")
    write_space([FOLLOWED], space)
    assert "src/leukoscope/gone.py" not in files(space)
    assert front_matter(space)["title"] == "Leukoscope"


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_no_space_is_left_alone(tmp_path: Path, what: str) -> None:
    out = tmp_path / "thesis"
    if what == "folder":
        out.mkdir()
    kept = out / "chapter.txt" if what == "folder" else out
    kept.write_text("years of work")
    with pytest.raises(LeukoscopeError, match=f"^{out}: is there and holds no Space made by this command"):
        write_space([PINNED], out)
    assert kept.read_text() == "years of work"


def test_a_full_disk_leaves_the_earlier_space(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = files(space)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(LeukoscopeError, match=r"cannot be written there \(.*No space left on device\); free some"):
        write_space([FOLLOWED], space)
    assert files(space) == before
    assert not list(space.parent.glob(".space*"))


# --- the models -----------------------------------------------------------------------------------------------------


def test_a_named_revision_is_pinned_and_another_followed(hub: Hub, model: str) -> None:
    commit = hub.repository("lab/cells").tags["v1"]
    wanted = ("config.json", "model.safetensors", "metrics.json", "README.md", "ood.safetensors")
    assert find_model("lab/cells@v1") == SpaceModel("lab/cells@v1", wanted, commit)
    assert find_model("lab/cells") == SpaceModel("lab/cells", wanted, "")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("cells", "cells: no such folder, and no Hub id either"),
        ("lab/none", r"lab/none: the Hub has no such model or revision, or keeps it from you \(HTTP 40[14]\)"),
        ("lab/cells@v9", r"lab/cells@v9: the Hub has no such model or revision"),
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


def test_a_space_is_published_in_one_commit_and_only_once(hub: Hub, space: Path) -> None:
    first = push_space(space, "lab/demo", again="")
    assert first.address == f"{hub.url}/spaces/lab/demo"
    there = hub.repository("spaces/lab/demo")
    assert [commit.title for commit in there.history("main")] == ["Publish Space", "initial commit"]
    assert set(there.at("main").files) - {".gitattributes"} == files(space)
    assert "lab/demo" not in hub.storage.repositories
    again = push_space(space, "lab/demo", again="")
    assert (again.commit, again.is_new) == (first.commit, False)


def test_what_an_earlier_version_left_goes_and_the_owners_files_stay(hub: Hub, space: Path) -> None:
    (space / "src/leukoscope/old.py").write_text("")
    (space / "mine.txt").write_text("")
    push_space(space, "lab/demo", again="")
    (space / "src/leukoscope/old.py").unlink()
    (space / "mine.txt").unlink()
    push_space(space, "lab/demo", again="")
    there = set(hub.repository("spaces/lab/demo").at("main").files)
    assert "mine.txt" in there
    assert "src/leukoscope/old.py" not in there


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["release", "space", *words])


def test_the_command_builds_and_publishes(hub: Hub, model: str, tmp_path: Path) -> None:
    out = tmp_path / "my space"
    done = run("--model", "lab/cells@v1", "--model", "lab/cells", "--output", str(out), "--push", "lab/demo")
    assert done.exit_code == 0, done.output
    assert f"space: {out} (try it: cd '{out}' && python app.py)" in done.output
    assert f"published: {hub.url}/spaces/lab/demo (commit " in done.output
    assert RESEARCH_NOTICE in done.output
    assert front_matter(out)["models"] == ["lab/cells"]


def test_nothing_is_uploaded_unasked(hub: Hub, model: str, tmp_path: Path) -> None:
    hub.requests.clear()
    assert run("--model", "lab/cells", "--output", str(tmp_path / "space")).exit_code == 0
    assert all(request.startswith("GET") for request in hub.requests)


def test_a_failed_push_names_the_command_that_goes_on(
    hub: Hub, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    words = ["--model", "lab/cells", "--output", str(tmp_path / "space"), "--push", "lab/demo", "--private"]
    failed = run(*words)
    assert failed.exit_code == 1
    assert "lab/demo: publishing failed: your token may not write there" in failed.output
    assert (
        f"The Space is whole in {tmp_path}/space; go on with: leukoscope release space {' '.join(words)}"
        in failed.output
    )
    monkeypatch.setenv("HF_TOKEN", "hf_may_write")
    assert run(*words).exit_code == 0
    assert hub.repository("spaces/lab/demo").private
