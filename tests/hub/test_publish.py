"""Publishing refuses early what would fail after hours, only reads the release, and survives a bad connection."""

from __future__ import annotations

import json
import re
import shutil
import socket
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from hub_server import READ_TOKEN, Fault, Hub
from leukoscope import LeukoscopeError, api
from leukoscope.cli import app
from leukoscope.hub.publish import Destination, check_can_publish, is_release_file, publish, release_contents
from leukoscope.inference.ood import OodDetector
from leukoscope.reports.card import CARD_PLOTS, draw_examples, render_card
from leukoscope.synthetic import draw_cell
from leukoscope.training.config import parse_config

MAY_NOT_WRITE = (
    "your token may not write there; make one that may at https://huggingface.co/settings/tokens, or name a repository "
    "of your own"
)
BAD_TOKEN = "the Hub does not accept your token; run `hf auth login` or set HF_TOKEN to a valid one"
HERE = Destination("lab/cells")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def as_published(release: Path, hub_id: str = "lab/cells") -> dict[str, bytes]:
    """What the Hub gets of a release: its files, example pictures, and the card made for that address."""
    with TemporaryDirectory() as name:
        shutil.copytree(release, Path(name) / "copy")
        draw_examples(Path(name) / "copy")
        (Path(name) / "copy" / "README.md").write_text(render_card(Path(name) / "copy", hub_id=hub_id))
        return contents(Path(name) / "copy")


def change_detector(release: Path) -> None:
    """Give a release an OOD detector with another threshold."""
    detector = OodDetector.load(release / "ood.safetensors")
    replace(detector, limit=detector.limit * 2).save(release / "ood.safetensors")


def published(hub: Hub, repository: str = "lab/cells", revision: str = "main") -> dict[str, bytes]:
    """Every file of a repository but the one that the Hub made itself."""
    names = set(hub.repository(repository).at(revision).files) - {".gitattributes"}
    return {name: hub.content(repository, name, revision) for name in names}


def titles(hub: Hub, repository: str = "lab/cells", revision: str = "main") -> list[str]:
    return [commit.title for commit in hub.repository(repository).history(revision)]


def sent(hub: Hub) -> list[str]:
    """The requests that put something into the Hub."""
    return [request for request in hub.requests if request.startswith("PUT") or "/commit/" in request]


# --- before training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hub_model_id", ["", "only-a-name", "one/two/three", "lab/", "lab/a b", "lab/a--b", "lab/a.git"]
)
def test_refuses_a_missing_or_malformed_repository(hub_model_id: str) -> None:
    with pytest.raises(LeukoscopeError, match="give the repository to publish to as owner/name"):
        check_can_publish(Destination(hub_model_id))


def test_refuses_without_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(LeukoscopeError, match="no Hub token found; run `hf auth login` or set HF_TOKEN"):
        check_can_publish(HERE)


def test_a_public_repository_takes_nothing_that_is_to_be_private(hub: Hub) -> None:
    hub.storage.create("lab/cells", private=False)
    with pytest.raises(
        LeukoscopeError, match=r"lab/cells: this model is public already; leave out the flag for a private one"
    ):
        check_can_publish(Destination("lab/cells", private=True))


@pytest.mark.parametrize("private", [True, False])
def test_the_repository_is_made_before_training(hub: Hub, private: bool) -> None:
    check_can_publish(Destination("lab/cells", private=private))
    assert hub.repository("lab/cells").private is private
    check_can_publish(Destination("lab/cells", private=private))
    assert titles(hub) == ["initial commit"]


@pytest.mark.parametrize(
    ("repository", "token", "problem"),
    [
        ("lab/cells", "hf_nobodys", BAD_TOKEN),
        ("lab/cells", READ_TOKEN, MAY_NOT_WRITE),
        ("lab/there-already", READ_TOKEN, MAY_NOT_WRITE),
        ("somebody/else", None, MAY_NOT_WRITE),
    ],
)
def test_what_the_hub_refuses_is_said_before_training(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, repository: str, token: str | None, problem: str
) -> None:
    hub.storage.create("lab/there-already", private=False)
    hub.storage.create("somebody/else", private=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(LeukoscopeError) as refused:
        check_can_publish(Destination(repository))
    assert re.fullmatch(re.escape(f"{repository}: {problem}") + r"( \(the Hub: .*\))?", str(refused.value))


@pytest.mark.usefixtures("waits")
def test_without_a_network_nothing_is_trained_or_lost(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, whole_release: Path
) -> None:
    before = contents(whole_release)
    # Nobody listens on the discard port.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LeukoscopeError) as refused:
        check_can_publish(HERE)
    assert re.fullmatch(r"lab/cells: the Hub does not answer \(.+\); try again", str(refused.value))
    with pytest.raises(LeukoscopeError, match=r"^lab/cells: publishing failed: the Hub does not answer \(.+\); try ag"):
        publish(whole_release, HERE)
    assert (hub.requests, contents(whole_release)) == ([], before)


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setattr("leukoscope.models.hub_download.HUB_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(LeukoscopeError, match="^lab/cells: the Hub does not answer"):
            check_can_publish(HERE)


def test_a_run_is_refused_before_training_and_published_after_it(
    hub: Hub, whole_release: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = parse_config(["--push_to_hub", "--hub_model_id", "lab/cells"])
    monkeypatch.setattr("leukoscope.training.train.train", lambda _: pytest.fail("trained"))
    with monkeypatch.context() as patch, pytest.raises(LeukoscopeError, match="your token may not write there"):
        patch.setenv("HF_TOKEN", READ_TOKEN)
        api.run(config)
    folder = whole_release.rename(whole_release.with_name("release")).parent
    monkeypatch.setattr("leukoscope.training.train.train", lambda _: folder)
    assert api.run(config) == folder
    assert f"published: {hub.url}/lab/cells (commit " in capsys.readouterr().out


# --- publishing -----------------------------------------------------------------------------------------------------


def test_a_release_arrives_whole_in_one_commit_and_twice_is_sent_once(hub: Hub, whole_release: Path) -> None:
    first = publish(whole_release, HERE)
    assert titles(hub) == ["Publish release", "initial commit"]
    assert published(hub) == as_published(whole_release)
    assert str(first) == f"{hub.url}/lab/cells (commit {hub.repository('lab/cells').at('main').oid[:12]})"
    hub.requests.clear()
    second = publish(whole_release, HERE)
    assert sent(hub) == []
    assert second == first


def test_a_new_version_sends_what_changed_and_removes_what_is_gone(hub: Hub, whole_release: Path) -> None:
    from huggingface_hub import HfApi

    publish(whole_release, HERE)
    HfApi().upload_file(path_or_fileobj=b"all yours", path_in_repo="LICENSE", repo_id="lab/cells")
    change_detector(whole_release)
    (whole_release / "figures" / "subjects.png").unlink()
    hub.requests.clear()
    publish(whole_release, HERE)
    assert len([request for request in sent(hub) if request.startswith("PUT")]) == 1
    assert published(hub) == as_published(whole_release) | {"LICENSE": b"all yours"}


def test_a_branch_is_made_and_main_stays_as_it_was(hub: Hub, whole_release: Path) -> None:
    done = publish(whole_release, Destination("lab/cells", revision="feature/x", private=True))
    assert published(hub, revision="feature/x") == as_published(whole_release)
    assert titles(hub) == ["initial commit"]
    assert hub.repository("lab/cells").private
    assert done.address == f"{hub.url}/lab/cells/tree/feature/x"


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (402, "Spaces require a PRO subscription.", "the Hub refuses it (HTTP 402: Spaces require a PRO subscription)"),
        (
            403,
            "Private repository storage limit reached",
            f"{MAY_NOT_WRITE} (the Hub: Private repository storage limit",
        ),
        (503, "", "the Hub fails (HTTP 503); try again"),
    ],
)
def test_what_the_hub_refuses_is_told_in_its_own_words(hub: Hub, status: int, said: str, told: str) -> None:
    headers = {"X-Error-Message": said} if said else {}
    hub.faults.append(Fault("POST /api/repos/create", status=status, headers=headers, times=99))
    with pytest.raises(LeukoscopeError, match=f"^{re.escape(f'lab/cells: {told}')}"):
        check_can_publish(HERE)


def test_under_a_tag_that_is_taken_nothing_is_sent(hub: Hub, whole_release: Path) -> None:
    tagged = Destination("lab/cells", tag="v1")
    first = publish(whole_release, tagged)
    change_detector(whole_release)
    for refused_by in (lambda: publish(whole_release, tagged), lambda: check_can_publish(tagged)):  # before training
        with pytest.raises(LeukoscopeError) as refused:
            refused_by()
        assert str(refused.value) == ("lab/cells: has the tag v1 already, and tags are not moved; name another one")
    assert hub.repository("lab/cells").tags == {"v1": first.commit}
    assert titles(hub) == ["Publish release", "initial commit"]


def test_without_a_flag_the_owners_default_decides_who_sees_a_new_model(hub: Hub) -> None:
    check_can_publish(Destination("lab/open"))
    hub.storage.private_by_default = True
    check_can_publish(Destination("lab/cells"))
    private = {id: repository.private for id, repository in hub.storage.repositories.items()}
    assert private == {"lab/open": False, "lab/cells": True}


def test_a_folder_that_is_no_release_is_refused_before_the_hub_is_asked(hub: Hub, tiny_release: Path) -> None:
    with pytest.raises(LeukoscopeError, match=r"metrics.json: missing, or without 'data'; a card is rendered from"):
        publish(tiny_release, HERE)
    with pytest.raises(LeukoscopeError, match=r"tests: has no config.json; give the folder of a release$"):
        publish(Path(__file__).parents[1], HERE)
    assert hub.requests == []


def test_a_push_changes_no_file_of_the_local_release(hub: Hub, whole_release: Path) -> None:
    """Pushed from a checkout, a release stays as it is committed."""
    before = contents(whole_release), {path: path.stat().st_mtime_ns for path in whole_release.rglob("*")}
    done = CliRunner().invoke(app, ["release", "push", str(whole_release), "--hub_model_id", "lab/cells"])
    assert done.exit_code == 0, done.output
    assert hub.content("lab/cells", "README.md") != (whole_release / "README.md").read_bytes()
    assert before == (contents(whole_release), {path: path.stat().st_mtime_ns for path in whole_release.rglob("*")})


def test_the_pages_examples_are_phantoms_drawn_when_published(hub: Hub, whole_release: Path) -> None:
    (whole_release / "examples").mkdir()
    Image.new("RGB", (8, 8)).save(whole_release / "examples" / "phantom_patient.png")
    publish(whole_release, HERE)
    names = [name for name in published(hub) if name.startswith("examples/")]
    assert sorted(names) == ["examples/phantom_ALL.png", "examples/phantom_HEM.png"]
    shown = Image.open(BytesIO(hub.content("lab/cells", "examples/phantom_ALL.png")))
    drawn = draw_cell("ALL", subject=0, size=shown.width, background="black").image
    assert np.array_equal(np.asarray(shown), drawn)
    widget = yaml.safe_load(hub.content("lab/cells", "README.md").decode().split("---\n")[1])["widget"]
    assert [one["src"] for one in widget] == sorted(names)
    assert widget[0]["example_title"] == "synthetic cell, drawn as ALL"
    assert sum(len(hub.content("lab/cells", name)) for name in names) < 300_000


def test_the_licence_of_weights_of_ones_own_data_is_asked_for(hub: Hub, whole_release: Path) -> None:
    metrics = json.loads((whole_release / "metrics.json").read_text())
    metrics["data"] |= {"name": "imagefolder", "title": "Own class folders", "licence": "yours", "citation": ""}
    (whole_release / "metrics.json").write_text(json.dumps(metrics))

    def push(*flags: str) -> tuple[str, dict[str, Any]]:
        done = CliRunner().invoke(app, ["release", "push", str(whole_release), "--hub_model_id", "lab/cells", *flags])
        return done.stderr, yaml.safe_load(hub.content("lab/cells", "README.md").decode().split("---\n")[1])

    told, card = push()
    assert "the card states no licence, so nobody may use the weights; give one with --licence" in told
    assert "license" not in card and "datasets" not in card
    told, card = push("--licence", "mit")
    assert "licence" not in told and card["license"] == "mit"


# --- a bad connection -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("/commit/", status=429, headers={"Retry-After": "3600"}), "the Hub asks for a pause (HTTP 429)"),
        (Fault("/commit/", status=500, times=99), "the Hub fails (HTTP 500); try again"),
        (Fault("PUT /lfs", "refuse_mid_upload", times=99), "Error while uploading 'predictions/subject_cv.parquet'"),
        (Fault("POST .*/preupload", "cut", times=99), "the Hub does not answer (peer closed connection"),
        (Fault("/tag/", status=500, times=99), "the Hub fails (HTTP 500); try again"),
    ],
    ids=["429", "500", "mid-upload", "cut", "tag"],
)
@pytest.mark.usefixtures("waits")
def test_a_failed_push_leaves_the_release_whole_and_says_how_to_go_on(
    hub: Hub, whole_release: Path, fault: Fault, reason: str
) -> None:
    before, to = contents(whole_release), Destination("lab/cells", tag="v1")
    if fault.request == "PUT /lfs":  # two at once would fail in either's name
        (whole_release / "ood.safetensors").unlink()
        hub.storage.keep((whole_release / "model.safetensors").read_bytes(), large=True)
        before = contents(whole_release)
    hub.faults.append(fault)
    with pytest.raises(LeukoscopeError) as failed:
        publish(whole_release, to)
    message = str(failed.value)
    assert message.startswith(f"lab/cells: publishing failed: {reason}")
    assert message.endswith(
        f". The release is whole in {whole_release}; go on, with your other flags, by: "
        f"leukoscope release push {whole_release} --hub_model_id lab/cells"
    )
    assert contents(whole_release) == before
    hub.faults.clear()
    publish(whole_release, to)
    assert published(hub) == as_published(whole_release)
    assert titles(hub) == ["Publish release", "initial commit"]


@pytest.mark.usefixtures("waits")
def test_an_upload_that_breaks_off_is_repeated(hub: Hub, whole_release: Path) -> None:
    hub.faults.append(Fault("PUT /lfs", "refuse_mid_upload"))
    publish(whole_release, HERE)
    assert published(hub) == as_published(whole_release)


@pytest.mark.usefixtures("waits")
def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: Hub, whole_release: Path) -> None:
    hub.faults.append(Fault("POST .*/commit/main", "cut"))
    with pytest.raises(LeukoscopeError, match="go on, with your other flags, by: "):
        publish(whole_release, HERE)
    done = publish(whole_release, HERE)
    assert titles(hub) == ["Publish release", "initial commit"]
    assert done.commit == hub.repository("lab/cells").at("main").oid


# --- what travels: no picture of a patient's cell -------------------------------------------------------------------


RELEASES = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/config.json"))
# How picture files of every kind we read begin, wherever they stand in a file.
PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"WEBPVP8")


def put_cells(release: Path) -> None:
    """Leave cell images all over a release's folder, as somebody's script may."""
    cell = Image.fromarray(draw_cell("ALL", subject=1, cell=0, size=64, background="black").image)
    names = ["UID_1_1_1_all.png", "figures/UID_all.png", "figures/cells/roc.png", "predictions/UID_all.webp"]
    for name in [*names, "cells.bmp"]:
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        cell.save(release / name)
    (release / "cells.npz").write_bytes(b"pixels")


def test_pictures_that_lie_about_stay_at_home(hub: Hub, whole_release: Path) -> None:
    before = set(release_contents(whole_release))
    put_cells(whole_release)
    publish(whole_release, Destination("lab/cells"))
    drawn = {"examples/phantom_ALL.png", "examples/phantom_HEM.png"}
    assert set(hub.repository("lab/cells").at("main").files) - {".gitattributes"} == before | drawn


@pytest.mark.parametrize(
    ("column", "content"),
    [("image", [b"pixels"]), ("pixels", [[0, 1]]), ("p_ALL", [b"pixels"]), ("label", [{"bytes": b"pixels"}])],
)
def test_a_table_with_other_columns_is_refused(hub: Hub, whole_release: Path, column: str, content: list[Any]) -> None:
    table = whole_release / "predictions" / "subject_cv.parquet"
    pq.write_table(pa.table({"cell_id": ["UID_1_1_1_all"], column: content}), table)
    with pytest.raises(
        LeukoscopeError, match=rf"subject_cv.parquet: column {column} \(.+\) is not a prediction; only cell ids"
    ):
        publish(whole_release, Destination("lab/cells"))
    assert hub.requests == []


def test_a_damaged_table_is_refused(whole_release: Path) -> None:
    (whole_release / "predictions" / "subject_cv.parquet").write_bytes(b"no table")
    with pytest.raises(LeukoscopeError, match="subject_cv.parquet: cannot be read"):
        release_contents(whole_release)


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_the_releases_of_this_repository_hold_no_pixels(release: Path) -> None:
    from safetensors import safe_open

    assert RELEASES, "without a release this would test nothing"
    for name, path in release_contents(release).items():
        if path.suffix == ".png":
            assert path.stem in CARD_PLOTS
            continue
        content = path.read_bytes()
        assert not [start for start in PICTURES[1:] if start in content], name
        assert not content.startswith(PICTURES), name
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
            assert kinds <= {"F16", "F32", "F64", "I64"}, "bytes may be pixels"
    assert len([path for path in release.rglob("*") if path.is_file()]) == len(release_contents(release))


def test_only_what_a_release_may_have_is_removed_from_a_repository() -> None:
    there = ["README.md", "LICENSE", ".gitattributes", "predictions/old.parquet"]
    there += ["figures/subjects.png", "figures/mine.png"]
    assert [name for name in there if is_release_file(name)] == [
        "README.md",
        "predictions/old.parquet",
        "figures/subjects.png",
    ]
