"""A folder of cells goes to the Hub as parquet with a card, private unless asked otherwise, and comes back the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import ExifTags, Image
from typer.testing import CliRunner, Result

import leukoscope as lk
from hub_server import Fault, Hub
from leukoscope import LeukoscopeError
from leukoscope.audit import audit_cells, scan_cells
from leukoscope.cli import app
from leukoscope.data.images import open_encoded
from leukoscope.data.registry import CNMC_PRELIM_LABELS
from leukoscope.data.splits import make_split
from leukoscope.hub.data_set import described, push_data_set
from leukoscope.hub.publish import Destination
from leukoscope.synthetic import PHANTOM_LABELS, draw_cell

ID = "lab/cells"
OWN = ("--subject_pattern", r"(?P<subject>P\d+)_")
TERMS = ("--licence", "cc-by-4.0", "--citation", "Doe, J. (2026). Our cells.")


@pytest.fixture
def data_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The Hub as 🤗 datasets sees it, which keeps an address of its own, with an empty cache."""
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
    yield hub


@pytest.fixture
def own_cells(tmp_path: Path) -> Path:
    """Two classes of two subjects; P0 and P2 share a picture, and one file says in its metadata whose it is."""
    folder = tmp_path / "own cells"
    for number, label in enumerate(PHANTOM_LABELS):
        for subject in range(2):
            for cell in range(3):
                image = Image.fromarray(draw_cell(label, subject=subject, cell=cell, size=64).image)
                path = folder / label / f"P{2 * number + subject}_{cell}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "Ann Person"
    exif[ExifTags.Base.Orientation] = 6
    image.save(folder / "HEM" / "P3_9.jpg", exif=exif)
    (folder / "ALL" / "P1_2.png").write_bytes((folder / "ALL" / "P0_0.png").read_bytes())
    return folder


def push(folder: Path, *flags: str, hub_id: str = ID) -> Result:
    return CliRunner().invoke(app, ["data", "push", str(folder), hub_id, *flags])


def front_matter(hub: Hub) -> dict[str, Any]:
    return yaml.safe_load(hub.content(f"datasets/{ID}", "README.md").decode().split("---\n")[1])


def test_a_folder_comes_back_through_load_dataset(data_hub: Hub, own_cells: Path) -> None:
    done = push(own_cells, *OWN, *TERMS)
    assert done.exit_code == 0, done.output
    assert f"published privately: {data_hub.url}/datasets/{ID} (commit " in done.stdout
    repository = data_hub.repository(f"datasets/{ID}")
    assert repository.private
    assert [commit.title for commit in repository.history("main")] == ["Publish data set", "initial commit"]

    back = datasets.load_dataset(ID)
    assert {name: len(rows) for name, rows in back.items()} == {"train": 13}
    features = back["train"].features
    assert features["label"] == datasets.ClassLabel(names=["ALL", "HEM"]) and features["image"] == datasets.Image()
    assert list(features) == ["image", "label", "subject", "cell_id"], "there are no folds to speak of"
    local = lk.load_dataset("imagefolder", own_cells, subject_pattern=OWN[1])
    undecoded = local.train.cast_column("image", datasets.Image(decode=False))
    for ours, theirs in zip(undecoded, back["train"], strict=True):
        assert np.array_equal(np.asarray(open_encoded(ours["image"], ours["cell_id"])), np.asarray(theirs["image"]))
        assert {key: ours[key] for key in ("label", "subject", "cell_id")} == {
            key: theirs[key] for key in ("label", "subject", "cell_id")
        }


def test_what_loads_it_back_finds_subjects_licence_and_citation(data_hub: Hub, own_cells: Path) -> None:
    assert push(own_cells, *OWN, *TERMS).exit_code == 0
    data = lk.load_dataset(ID)
    local = lk.load_dataset("imagefolder", own_cells, subject_pattern=OWN[1])
    for column in ("label", "subject", "cell_id", "fold"):
        assert data.train[column][:] == local.train[column][:]
    assert (data.info.name, data.info.title) == (ID, "cells")
    assert (data.info.licence, data.info.citation) == ("cc-by-4.0", "Doe, J. (2026). Our cells.")
    subject_of = dict(zip(data.train["cell_id"], data.train["subject"], strict=True))
    for number in range(2):
        fold = make_split(data, "subject-cv", num_folds=2, fold=number, validation=False)
        assert fold.test and {subject_of[cell] for cell in fold.train}.isdisjoint({subject_of[c] for c in fold.test})


def test_no_metadata_of_a_file_travels(data_hub: Hub, own_cells: Path) -> None:
    assert push(own_cells, *OWN, *TERMS).exit_code == 0
    (name,) = [name for name in data_hub.repository(f"datasets/{ID}").at("main").files if name.endswith(".parquet")]
    assert name == "data/train-00000-of-00001.parquet"
    images = pq.read_table(BytesIO(data_hub.content(f"datasets/{ID}", name)))["image"].to_pylist()
    assert len(images) == 13
    for image in images:
        assert image["path"] is None and image["bytes"].startswith(b"\x89PNG")
        assert b"Ann Person" not in image["bytes"] and Image.open(BytesIO(image["bytes"])).info == {}


def test_its_card_says_what_the_audit_found(data_hub: Hub, own_cells: Path) -> None:
    done = push(own_cells, *OWN, *TERMS)
    card = data_hub.content(f"datasets/{ID}", "README.md").decode()
    finding = "1 pixel-identical pair(s) stand in two subjects, so that a split may test on a picture it trained on"
    assert f"inflates metrics: {finding}" in done.stdout and f"- **Inflates metrics:** {finding}" in card
    assert "Subjects P0, P1 share pictures, so they seem to be one subject; they are not joined here. To" in card
    assert "join them, write\n`P1: P0` into `leukoscope.subject_aliases`" in card.replace("To join", "join")
    assert "the Hub gets ids as they are, such as subject 'P0' and cell 'ALL/P0_0'" in done.stderr
    assert "| ALL | 6 | 2 |" in card and "of 4 subjects" in card and "Split them by `subject`" in card
    assert lk.RESEARCH_NOTICE in card and "Cite: Doe, J. (2026). Our cells." in card
    assert "publish at" not in card and "\n\n\n" not in card
    about = front_matter(data_hub)
    assert (about["license"], about["pretty_name"]) == ("cc-by-4.0", "cells")
    assert about["task_categories"] == ["image-classification"]
    assert about["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]


def test_without_subjects_its_card_holds_for_nobody_new(data_hub: Hub, own_cells: Path) -> None:
    done = push(own_cells, *TERMS)
    assert "train on it: leukoscope train --dataset_name lab/cells --split random\n" in done.stdout
    card = data_hub.content(f"datasets/{ID}", "README.md").decode()
    assert "no metric on them applies to a new subject" in card and "`subject`" not in card
    assert "| ALL | 6 | – |" in card
    assert datasets.load_dataset(ID)["train"].column_names == ["image", "label", "cell_id"]
    assert set(lk.load_dataset(ID).train["subject"]) == {""}


def test_a_known_data_set_brings_its_terms_aliases_and_framing(data_hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "cnmc"
    for number, name in enumerate(("UID_1_1_1_all", "UID_2_1_1_all", "UID_H10_1_1_hem", "UID_h3_1_1_hem")):
        path = folder / f"fold_{number % 3}" / name[-3:] / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_cell(name[-3:].upper(), subject=number, size=64).image).save(path)
    test = folder / "C-NMC_test_prelim_phase_data"
    test.mkdir()
    Image.fromarray(draw_cell("ALL", subject=9, size=64).image).save(test / "1.bmp")
    (folder / CNMC_PRELIM_LABELS).write_text("Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\n")
    done = push(folder, "--public")
    assert done.exit_code == 0 and "published: " in done.stdout
    assert not data_hub.repository(f"datasets/{ID}").private
    about = front_matter(data_hub)
    assert about["license"] == "cc-by-3.0"
    assert about["leukoscope"]["subject_aliases"] == {"h3": "H10"}
    card = data_hub.content(f"datasets/{ID}", "README.md").decode()
    assert "A copy of C-NMC 2019 (ISBI 2019 challenge), which its authors publish at https://doi.org/" in card
    assert "Licence: CC BY 3.0 (TCIA)." in card and "leukoscope train --dataset_name lab/cells\n" in card
    assert "Joined, because they are one subject: h3 = H10." in card and "`fold`" in card
    assert "The split `preliminary_test` is the publisher's own test; leave it out of training." in card
    data = lk.load_dataset(ID)
    assert data.cells["preliminary_test"]["cell_id"][:] == ["UID_57_29_1_all"]
    assert sorted(set(data.train["subject"])) == ["1", "2", "H10"]
    assert sorted(data.train["fold"]) == ["fold_0", "fold_0", "fold_1", "fold_2"]
    known = lk.DATASETS["cnmc2019"]
    assert (data.info.name, data.info.background, data.info.crop_pct) == (ID, "black", known.crop_pct)
    assert (data.info.positive_label, data.info.citation) == ("ALL", known.citation)
    assert data.info.about()["copy_of"] == "cnmc2019", "a release trained on it knows how its cells are shown"


def test_splits_of_a_data_sets_own_are_those_of_the_hub(data_hub: Hub, own_cells: Path) -> None:
    data = lk.load_dataset("imagefolder", own_cells)
    sides = ["train"] * 8 + ["validation"] * 2 + ["test"] * 3
    cells = data.train.remove_columns("fold").add_column("fold", sides)
    seen = scan_cells(replace(data, cells=datasets.DatasetDict(train=cells)))
    info = described(own_cells, licence="mit", citation="Doe 2026")
    push_data_set(seen, audit_cells(seen), info, Destination(ID, private=True, kind="dataset"))
    back = datasets.load_dataset(ID)
    assert {name: len(rows) for name, rows in back.items()} == {"train": 8, "validation": 2, "test": 3}
    assert back["test"]["cell_id"][:] == cells["cell_id"][10:]
    assert back["test"].column_names == ["image", "label", "cell_id"]


def test_aliases_written_into_the_card_are_joined_on_loading(data_hub: Hub, own_cells: Path) -> None:
    from huggingface_hub import DatasetCard, HfApi

    assert push(own_cells, *OWN, *TERMS).exit_code == 0
    card = DatasetCard.load(ID)
    card.data["leukoscope"]["subject_aliases"] = {"P1": "P0"}
    HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id=ID, repo_type="dataset")
    assert sorted(set(lk.load_dataset(ID).train["subject"])) == ["P0", "P2", "P3"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ((), "under which licence may others use these cells? Give it with --licence, such as cc-by-4.0"),
        (TERMS[:2], "how are these cells to be cited? Give it with --citation, such as"),
        (("--licence", "all mine", *TERMS[2:]), "--licence all mine: not as the Hub names licences; give one such as"),
        ((*TERMS, "--subject_pattern", "nothing"), "--subject_pattern nothing: has no group"),
    ],
)
def test_what_is_missing_is_asked_for_before_anything_is_sent(
    data_hub: Hub, own_cells: Path, flags: tuple[str, ...], problem: str
) -> None:
    refused = push(own_cells, *flags)
    (line,) = refused.stderr.splitlines()
    assert refused.exit_code == 1 and line.startswith("error: ") and problem in line
    assert data_hub.requests == []


def test_no_place_on_the_hub_is_asked_for_first(own_cells: Path) -> None:
    refused = push(own_cells, *TERMS, hub_id="cells")
    assert refused.stderr.startswith("error: cells: give the repository to publish to as owner/name (letters, digits")


def test_a_public_data_set_is_not_written_to_unasked(data_hub: Hub, own_cells: Path) -> None:
    data_hub.storage.create(f"datasets/{ID}", private=False)
    refused = push(own_cells, *TERMS, "--quiet")
    assert "this data set is public already; add --public to publish there, or name another one" in refused.stderr
    assert set(data_hub.repository(f"datasets/{ID}").at("main").files) == {".gitattributes"}
    assert push(own_cells, *TERMS, "--public", "--quiet").exit_code == 0


def test_pushed_again_it_sends_nothing_and_a_smaller_one_leaves_no_rest(data_hub: Hub, own_cells: Path) -> None:
    assert push(own_cells, *TERMS, "--quiet").exit_code == 0
    again = push(own_cells, *TERMS, "--quiet")
    assert "these files were there already, nothing was sent" in again.stdout and again.stderr == ""
    from huggingface_hub import HfApi

    for name in ("data/train-00001-of-00002.parquet", "LICENSE"):
        HfApi().upload_file(path_or_fileobj=b"x", path_in_repo=name, repo_id=ID, repo_type="dataset")
    (own_cells / "ALL" / "P1_2.png").unlink()
    assert push(own_cells, *TERMS, "--quiet").exit_code == 0
    assert set(data_hub.repository(f"datasets/{ID}").at("main").files) == {
        ".gitattributes",
        "LICENSE",
        "README.md",
        "data/train-00000-of-00001.parquet",
    }


@pytest.mark.usefixtures("waits")
def test_a_push_that_fails_ends_in_one_line(data_hub: Hub, own_cells: Path) -> None:
    data_hub.faults.append(Fault("/commit/", status=500, times=99))
    refused = push(own_cells, *TERMS, "--quiet")
    assert refused.stderr == (
        f"error: {ID}: publishing failed: the Hub fails (HTTP 500); try again. Nothing here was changed; the same "
        "command goes on\n"
    )


def test_a_disk_that_refuses_is_named(
    data_hub: Hub, own_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))
    refused = push(own_cells, *TERMS, "--quiet")
    assert refused.stderr == (
        f"error: {tmp_path / 'full'}: the upload cannot be prepared there (No such file or directory); set "
        "TMPDIR to another folder\n"
    )
    assert not [request for request in data_hub.requests if "/commit/" in request]


def test_without_a_network_nothing_is_read_for_nothing(
    data_hub: Hub, own_cells: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused = push(own_cells, *TERMS)
    assert refused.stderr.splitlines()[-1] == (
        f"error: {ID}: the Hub cannot be reached; check the network (and HF_HUB_OFFLINE)"
    )
    assert "copies" not in refused.stdout and data_hub.requests == []


def test_a_data_set_that_is_not_there_is_one_message(data_hub: Hub) -> None:
    with pytest.raises(LeukoscopeError, match=f"^data set {ID}: cannot be loaded from the Hub"):
        lk.load_dataset(ID)
