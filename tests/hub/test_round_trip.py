"""The whole trip, each step in a process of its own: train, publish, and be answered by everyone who loads it by name.

`huggingface_hub` reads HF_ENDPOINT and HF_HOME when it is imported, so that a fresh process is a fresh machine; those
at home share what they have imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drawn import save_cell
from environments import borrowing, required
from hub_server import WRITE_TOKEN, Fault, Hub, serving
from scratch import lay_out_own_cells
from served import served
from warm import warm_python

ROOT = Path(__file__).parents[2]
ID = "lab/leukoscope-phantoms"
pytestmark = pytest.mark.slow

TRAIN = ("train.py", "--image_size", "64", "--max_train_samples", "48", "--num_train_epochs", "1")
# What a stranger writes, three ways, for two versions.
ASK = """
import json, sys, torch, timm
from PIL import Image
from transformers import pipeline
from leukoscope import Predictor
name, picture, *revisions = sys.argv[1:]
answers = {}
for revision in revisions:
    pipe = pipeline("image-classification", model=name, revision=revision)
    by_pipeline = {row["label"]: row["score"] for row in pipe(picture)}
    network = timm.create_model(f"hf-hub:{name}@{revision}", pretrained=True).eval().float()
    show = timm.data.create_transform(**timm.data.resolve_data_config(network.pretrained_cfg))
    with torch.no_grad():
        shares = network(show(Image.open(picture))[None]).softmax(1)[0].tolist()
    prediction = Predictor.from_pretrained(f"{name}@{revision}")(picture)
    answers[revision] = {
        "pipeline": by_pipeline,
        "timm": dict(zip(network.pretrained_cfg["label_names"], shares)),
        "predictor": prediction.probabilities,
        "revision": prediction.revision,
    }
print("answers:", json.dumps(answers))
"""


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """A machine that knows this Hub alone and has nothing of it yet."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))}
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": WRITE_TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "NO_PROXY": "127.0.0.1,localhost",
        "LEUKOSCOPE_CACHE": str(home / "cells"),
        "PYTHONPATH": str(ROOT / "src"),
        **more,
    }


def run(hub: Hub, folder: Path, *words: str, home: str = "home", ok: bool = True) -> Any:
    """A Python command in `folder`."""
    words = (str(ROOT / words[0]), *words[1:]) if words[0].endswith(".py") else words
    done = subprocess.run(
        [folder / "python" if home == "home" else sys.executable, *words],
        cwd=folder,
        env=environment(hub, folder / home),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trip")


@pytest.fixture(scope="module")
def hub(place: Path) -> Iterator[Hub]:
    with serving(place / "hub") as running, warm_python(place, environment(running, place / "home")):
        yield running


@pytest.fixture(scope="module")
def versions(hub: Hub, place: Path) -> dict[str, str]:
    """Two versions on the Hub, tag → commit: of a run whose push failed and was gone on with, and a colder one."""
    hub.faults.append(Fault("POST .*/commit/main", status=429, headers={"Retry-After": "3600"}))
    failed = run(hub, place, *TRAIN, "--output_dir", "run", "--push_to_hub", "--hub_model_id", ID, ok=False)
    release, push = Path("run", "release"), ("-m", "leukoscope", "release", "push")
    (error,) = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert error == (
        f"error: {ID}: publishing failed: the Hub asks for a pause (HTTP 429); try again later. The release is whole "
        f"in {release}; go on, with your other flags, by: leukoscope release push {release} --hub_model_id {ID}"
    )
    assert {"README.md", "config.json", "metrics.json", "model.safetensors"} <= set(os.listdir(place / release))
    run(hub, place, "-m", *error.partition(" by: ")[2].split(), "--tag", "v1")
    _write_colder(place / "run" / "release", place / "colder")
    pushed = run(hub, place, *push, "colder", "--hub_model_id", ID, "--tag", "v2")
    assert f"published: {hub.url}/{ID} (commit " in pushed.stdout
    return dict(hub.repository(ID).tags)


def _write_colder(release: Path, target: Path) -> None:
    from leukoscope.models.release import edit_release
    from leukoscope.models.weights import load_release, rescale_classifier, save_weights

    with edit_release(release, target) as aside:
        save_weights(rescale_classifier(load_release(release).network, 0.1), aside)


@pytest.fixture(scope="module")
def picture(place: Path) -> Path:
    return save_cell(place / "cell.png", "ALL", subject=5, cell=1, size=450)


@pytest.fixture(scope="module")
def answers(hub: Hub, place: Path, versions: dict[str, str], picture: Path) -> dict[str, Any]:
    """What three ways of loading answer for each version, on a machine that has nothing yet."""
    asked = run(hub, place, "-c", ASK, ID, str(picture), *versions, "main", home="fresh")
    (line,) = [line for line in asked.stdout.splitlines() if line.startswith("answers: ")]
    return json.loads(line.removeprefix("answers: "))


def test_each_version_is_one_commit(hub: Hub, versions: dict[str, str]) -> None:
    history = hub.repository(ID).history("main")
    assert [commit.title for commit in history] == ["Publish release", "Publish release", "initial commit"]
    assert versions == {"v1": history[1].oid, "v2": history[0].oid}


def test_pipeline_timm_and_predictor_agree_on_every_version(answers: dict[str, Any], versions: dict[str, str]) -> None:
    for answer in answers.values():
        for way in ("pipeline", "timm"):
            assert answer[way] == pytest.approx(answer["predictor"], abs=1e-4)
    assert {tag: answers[tag]["revision"] for tag in versions} == versions


def test_a_pinned_revision_keeps_its_answer(answers: dict[str, Any]) -> None:
    assert answers["main"] == answers["v2"]
    assert answers["v1"]["predictor"]["ALL"] != pytest.approx(answers["v2"]["predictor"]["ALL"], abs=0.01)


def test_a_space_answers_alike(
    hub: Hub, place: Path, space: Path, space_python: Path, picture: Path, answers: dict[str, Any]
) -> None:
    from gradio_client import Client, handle_file

    # Nothing of the repository, nor of the environment that the tests run in.
    own = environment(hub, place / "space-home", PYTHONPATH="")
    with served(space, space_python, "app.py", environment=own, cwd=space) as (address, _):
        client = Client(address, verbose=False, httpx_kwargs={"timeout": 300}, download_files=str(place / "overlays"))
        for name, asked in ((f"{ID}@v1", "v1"), (ID, "main")):
            _, shares, _, text, _ = client.predict(handle_file(picture), name, api_name="/predict")
            assert shares == pytest.approx(answers[asked]["predictor"], abs=1e-4)
            assert answers[asked]["revision"][:12] in text
    # It fails where Gradio's extra is missing.
    subprocess.run([space_python, "-c", "import mcp"], check=True)
    pulled = {path.name for path in (place / "space-home" / "hub").glob("models--*/snapshots/*/*")}
    assert {"config.json", "model.safetensors", "metrics.json", "README.md"} <= pulled


@pytest.fixture(scope="module")
def space(hub: Hub, place: Path, versions: dict[str, str]) -> Path:
    """A Space as a machine gets it from the Hub."""
    models = (f"{ID}@v1", ID)
    run(hub, place, "-m", "leukoscope", "release", "space", *models, "--output", "written", "--push", "lab/demo")
    fetch = "import huggingface_hub as h; h.snapshot_download('lab/demo', repo_type='space', local_dir='space')"
    run(hub, place, "-c", fetch)
    return place / "space"


@pytest.fixture(scope="module")
def space_python(place: Path, space: Path) -> Path:
    """The interpreter of a new environment that holds what the Space asks for, and nothing else."""
    asked = [line for line in (space / "requirements.txt").read_text().splitlines() if line and line[0] not in "#-"]
    return borrowing(place / "environment", required(asked).__contains__) / "python"


PUSH = """
import sys, leukoscope
data = leukoscope.load_dataset("imagefolder", "cells/my_cells", labels="cells/my_cells/subjects.csv")
data.cells.push_to_hub(sys.argv[1], private=True)
"""


UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo(sys.argv[1], repo_type="dataset")
HfApi().upload_folder(repo_id=sys.argv[1], folder_path="nested", repo_type="dataset")
"""


def test_class_folders_within_class_folders_of_the_hub_are_refused(hub: Hub, place: Path) -> None:
    """`datasets` takes the inner folder for the class."""
    for label in ("ALL", "HEM"):
        for number in range(3):
            save_cell(place / "nested" / label / label / f"{number}.png", subject=number)
    save_cell(place / "nested" / "ALL" / "HEM" / "relabelled.png", subject=9)
    run(hub, place, "-c", UPLOAD, "lab/nested")
    refused = run(hub, place, "-c", "import leukoscope; leukoscope.load_dataset('lab/nested')", ok=False)
    assert "ALL/HEM/relabelled.png: its path names two classes, 'ALL' and 'HEM'" in refused.stderr


def test_a_data_set_goes_to_the_hub_and_trains_elsewhere(hub: Hub, place: Path) -> None:
    (place / "cells").mkdir()
    lay_out_own_cells(place / "cells")
    run(hub, place, "-c", PUSH, "lab/cells")
    assert hub.repository("datasets/lab/cells").private

    flags = ["--from_scratch", "--image_size", "64", "--num_train_epochs", "1", "--output_dir", "from-hub"]
    flags += ["--override", "block_config=[2,2,2,2]", "--push_to_hub", "--hub_model_id", "lab/from-hub"]
    words = ("train.py", "--dataset_name", "lab/cells", "--split", "subject", *flags)
    assert f"published: {hub.url}/lab/from-hub (commit " in run(hub, place, *words, home="another").stdout
    metrics = json.loads((place / "from-hub" / "release" / "metrics.json").read_text())
    assert metrics["data"]["name"] == "lab/cells"
    tested = metrics["evaluations"][0]
    assert tested["split"]["disjoint_by"] == "subject"
    assert set(tested["metrics"]["subjects"]).isdisjoint(metrics["training"]["subjects"])
    assert "datasets:\n- lab/cells\n" in (place / "from-hub" / "release" / "README.md").read_text()
