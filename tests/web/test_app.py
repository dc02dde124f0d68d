"""The demo as a server: what it refuses, and that nothing of a visit stays behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import gradio
import httpx
import pytest
from gradio.routes import App
from starlette.testclient import TestClient

import app as start
from leukoscope import LeukoscopeError, __version__
from leukoscope.web import FIRST_UNSUPPORTED_GRADIO
from leukoscope.web import app as web_app
from leukoscope.web.app import (
    AT_ONCE,
    OPEN_FILES,
    allow_open_files,
    app_options,
    build_demo,
    require_free_address,
    require_upload_folder,
    serve,
)
from leukoscope.web.content_policy import POLICY
from leukoscope.web.evidence import evidence, folded_card
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.upload import keep_uploads_apart

ROOT = Path(__file__).parents[2]
# Whoever runs the tests may be root, who may listen at every port.
_AS_NOBODY = "import encodings.idna\nos.setuid(65534) if os.geteuid() == 0 else None\n"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    demo = build_demo(ModelCache({}))
    return App.create_app(demo, app_kwargs=app_options(demo))


def test_neither_a_session_nor_a_video_is_written_to_disk(app: App, tmp_path: Path) -> None:
    assert app.state_holder["a-visit"] is not None
    answer = TestClient(app).get("/gradio_api/deep_link", params={"session_hash": "a-visit"})
    assert answer.status_code == 404
    assert answer.json() == {"detail": "This server keeps nothing of a visit; save the result from the page."}
    assert TestClient(app).post("/gradio_api/process_recording", files={"video": b"video"}).status_code == 404
    assert not [*tmp_path.rglob("state.json"), *tmp_path.rglob("*.mp4")]


def test_a_server_terminated_as_it_starts_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM may come after the page is served and before the server waits for it."""
    demo = build_demo(ModelCache({}))
    monkeypatch.setattr(web_app, "build_demo", lambda models: demo)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(web_app, "Thread", lambda **_: signal.raise_signal(signal.SIGTERM))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            serve(tmp_path, tmp_path / "models.txt", "127.0.0.1", port)
        assert ended.value.code == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))
    assert not getattr(demo, "run_history", False), "newer versions of Gradio would keep a visitor's runs"
    assert demo.max_threads == AT_ONCE * len(demo.fns), "events that wait for a model take no thread from others"


def test_each_of_several_quick_clicks_is_answered() -> None:
    """By default, Gradio drops an event that comes while the same one is under way: the page showed an older choice."""
    asked = [fn for fn in build_demo(ModelCache({})).fns.values() if fn.fn and not fn.api_name]
    assert [fn for fn in asked if fn.trigger_mode != "multiple"] == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file" / "gradio"))
    with pytest.raises(
        LeukoscopeError, match=r"gradio: uploads cannot be written there .*; set GRADIO_TEMP_DIR to a f"
    ):
        require_upload_folder()


def test_every_response_names_the_policy_also_a_refused_one(app: App) -> None:
    for path in ("/healthz", "/config", "/gradio_api/info", "/gradio_api/deep_link", "/nothing"):
        assert TestClient(app).get(path).headers["content-security-policy"] == POLICY, path


def test_no_visitor_waits_for_the_first_prediction_of_a_model(tiny_release: Path) -> None:
    models = ModelCache({"tiny": tiny_release})
    web_app._warm_up(models)
    (row,) = models.examples.values()
    assert not row.pending and row.known.changed


def test_the_evidence_is_the_card_of_the_release(tiny_release: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_release, tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text("---\na: b\n---\n# Tiny\n![plot](figures/a.png)<img src=x>\nmeasured")
    models = ModelCache({"tiny": tmp_path / "tiny"})
    assert evidence(models, list(models.names), "")[1].split() == ["#", "Tiny", "measured"]
    (tmp_path / "tiny" / "README.md").unlink()
    for known in (models, ModelCache({})):
        assert evidence(known, list(known.names), "")[1] == "This release comes without a card."


def test_a_card_is_folded_at_its_headings_and_its_tables_scroll() -> None:
    card = (
        "# Tiny\n\nA model.\n\n## How good it is\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n### Small\n\n"
        "```sh\n## no heading\n| no table |\n```\n\n## What it is not for\n\n- patients"
    )
    folded = folded_card(card)
    summaries = re.findall(r"<details( open)?><summary>(.*)</summary>", folded)
    assert summaries == [
        (" open", "What it is not for"),
        ("", "How good it is<small>each test, with intervals</small>"),
        ("", "Small"),
    ]
    heads = ("A", "B", "C", "What it was trained on", "What it is not for")
    long = "".join(f"\n\n## {head}\n\nwords" for head in heads)
    summaries = re.findall(r"<details( open)?><summary>(.*)</summary>|</div>", folded_card(f"# Tiny{long}"))
    trained_on = ("", "What it was trained on<small>data, licence, first weights</small>")
    right = [("", "A"), ("", "B"), ("", "C"), trained_on]
    left = [(" open", "What it is not for")]
    assert summaries == [*left, ("", ""), *right, ("", ""), ("", "")], "the one that is open has a column"
    assert folded.count("<div") == folded.count("</div>") == 4, "two columns in a box, and one table"
    assert "\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n</div>" in folded
    assert "```sh\n## no heading\n| no table |\n```" in folded
    assert folded.index("# Tiny") < folded.index("What it is not for") < folded.index("How good it is")
    table = folded_card("# A\n\n## B\n\n| 0.7 (0.6–0.8) | blurred (σ 1 px) |\n\n0.6–0.8")
    assert "| 0.7 (0.6\u2060–\u20600.8) | blurred (σ\u00a01\u00a0px) |" in table and "\n0.6–0.8" in table, (
        "in a cell, no line ends after its dash or before its unit"
    )
    assert folded_card("# Tiny\n\nA model.") == "# Tiny\n\nA model.", "nothing to fold"
    assert folded_card("# A\n\n## B\n\n```\ncode").count("```") == 2, "an open end would hold all that follows"


def test_the_table_of_all_models_shows_small_changes_and_each_person(tiny_release: Path, tmp_path: Path) -> None:
    measured = shutil.copytree(ROOT / "model_card" / "leukoscope-densenet169-cnmc", tmp_path / "measured")
    metrics = json.loads((measured / "metrics.json").read_text())
    robustness = json.loads((ROOT / "results" / "robustness" / "leukoscope-densenet169-cnmc-before.json").read_text())
    (measured / "metrics.json").write_text(json.dumps(metrics | {"robustness": robustness["robustness"]}))
    models = ModelCache({"measured": measured, "tiny": tiny_release})
    html, _ = evidence(models, list(models.names), "measured")
    first, second = html.split("<tbody>")[1].split("</tbody>")[0].split("</tr>")[:2]
    assert '<b class="lk-mean">mean 84</b>' in html and '<b class="lk-mean">mean 78</b>' in html
    worst = "23 (18\u2060–\u206029) of 100 cells change class when 15\u00a0% less saturated"
    assert worst in first
    assert "not measured" in html.split("<dt>most class changes</dt>")[2].split("</dd>")[0], "of each model"
    assert html.split("<thead>")[1].split("</thead>")[0].count("<th ") == 5
    assert html.split("<thead>")[1].split("</thead>")[0].count("recognised") == 1, "said once, each head on one line"
    assert "cell size alone" not in first + second, "it has a line of its own"
    assert '<td colspan="4">' in second and "not measured on people" in second, "in one line"
    assert first.count("shown below") == 1 and "shown below" not in second, "what the highlight means"
    assert "Trained on C-NMC 2019" in first and "CC BY" not in first, "the licence stands in the card"
    assert "AUROC 0.736 (0.57–0.88)" in first and "AUROC 0.881 (0.79–0.94)" in first, "both with their intervals"
    first_claim = html.split('class="lk-conclusion">')[1].split("</p>")[0]
    what_follows = html.split('class="lk-lines lk-quiet">')[1].split("</ul>")[0]
    assert html.index("How good are these models?") < html.index('class="lk-conclusion">') < html.index("<table>")
    assert what_follows.count("<li>") == 3, "a line for each"
    recognised = "measured (earlier weights) recognised 81 of 100 blasts and 54 of 100 normal cells"
    assert first_claim.endswith(f"{recognised}; guessing gives 50."), "figures that the table shows"
    assert "Earlier weights: measured was measured on them after an earlier training" in what_follows
    assert 'href="?model=measured" aria-label="Try measured on a cell"' in first
    assert 'aria-label="84 of 100 blasts, 95 % interval 78 to 89"' in first
    blocks = html.split('class="lk-models">')[1].split("How to read this table")[0].split('data-act="evidence:')[1:]
    lines = [re.findall(r'^([\w-]+)".*?<small>([^<]*)</small>(.*?)<dl', block, re.DOTALL)[0] for block in blocks]
    assert [name for name, *_ in lines] == ["measured", "tiny"], "a line for each model, for a phone"
    assert lines[0][1] == "34 further people, earlier weights: of 100, recognised"
    assert re.findall(r'aria-label="(\d+ of 100 [\w ]+), 95 %', lines[0][2]) == [
        "81 of 100 blasts",
        "54 of 100 normal cells",
    ]
    assert "lk-meter" not in lines[1][2]
    assert "shown below" not in html.split('class="lk-models">')[1], "each head is a name and a link"
    assert re.findall(r"\((\d+–\d+)\)", lines[0][2]) == ["62–96", "34–73"], "intervals in figures"
    assert "maps failed our checks" in lines[0][2] and "maps not checked" in lines[1][2], "in sight"
    folded_heads = re.findall("<dt>(.*?)</dt>", blocks[0])
    assert folded_heads[:2] == ["further people", "cross-validation: of 100, recognised"], "of 100 where meters follow"
    assert '<b aria-hidden="true">✗</b>&nbsp;maps failed our checks' in first and "✗" not in second
    assert '<small class="lk-interval" aria-hidden="true">(78–89)</small>' in first
    below_claim = html.split('class="lk-conclusion-caveat">')[1].split("</p>")[0]
    assert below_claim == (
        "Not a fully independent test: no weights were trained on these 34 people, but the default network and the "
        "class frequencies were chosen after looking at their results."
    )
    assert html.count("after looking at their results") == 1, "said once"
    people = metrics["evaluations"][0]["metrics"]["subjects"]
    assert html.count('<i style="--v:') == len(people) == 41
    assert "28 people, mean 84" in html and "data:image/png" not in html
    assert "<span>worst</span>" in html and "100, all" in html and "0, none" in html, "the ends of the axes in words"
    changes = html.split('class="lk-changes"')[1].split("<tbody>")[1].split("</tr>")
    assert "15\u00a0% less saturated" in changes[0] and "<td>23</td>" in changes[0], "the worst comes first"
    assert "1,969 cells of 41 people" in html
    assert html.count('aria-current="true"') == 2, "in the table and among the blocks of a phone"
    assert 'class="lk-chosen" aria-current="true"' in first


def test_cell_size_alone_has_one_line_for_all_models_tested_on_the_same_people() -> None:
    """It was repeated in the row of each model."""
    names = [f"leukoscope-{name}" for name in ("densenet169-cnmc", "densenet201-ball4", "efficientnet-b3-cnmc")]
    models = ModelCache({name: ROOT / "model_card" / name for name in names})
    html, _ = evidence(models, names, names[0])
    rows = html.split("<tbody>")[1].split("</tbody>")[0].split("</tr>")[:-1]
    assert len(rows) == 4 and ["cell size alone" in row for row in rows] == [False, False, False, True]
    facts = re.findall("<span>(.*?)</span>", rows[3])
    assert facts == [
        "cross-validation: AUROC 0.781",
        "the same 41 people as densenet169-cnmc and efficientnet-b3-cnmc",
        "no figure for further people",
    ]
    assert rows[3].count("<td") == 1, "one line in place of four cells of which two were empty"
    blocks = html.split('class="lk-models">')[1].split("How to read this table")[0]
    assert blocks.count("0.781") == 1, "on a phone, too"
    order = re.findall(r'data-act="evidence:leukoscope-([\w-]+)"', "".join(rows))
    assert order == ["densenet169-cnmc", "efficientnet-b3-cnmc", "densenet201-ball4"], "those measured on people first"
    assert "blurred (σ\u00a01\u00a0px)" in rows[1]


def test_other_people_have_a_line_of_their_own_for_cell_size_alone(tmp_path: Path) -> None:
    names = [f"leukoscope-{name}" for name in ("densenet169-cnmc", "efficientnet-b3-cnmc")]
    releases = {name: Path(shutil.copytree(ROOT / "model_card" / name, tmp_path / name)) for name in names}
    metrics = json.loads((releases[names[1]] / "metrics.json").read_text())
    metrics["evaluations"][0]["metrics"]["subjects"].popitem()
    (releases[names[1]] / "metrics.json").write_text(json.dumps(metrics))
    html, _ = evidence(ModelCache(releases), names, names[0])
    table = html.split("<tbody>")[1].split("</tbody>")[0]
    assert "the same 41 people as densenet169-cnmc" in table
    assert "the same 40 people as efficientnet-b3-cnmc" in table
    del metrics["evaluations"][0]["size_only_baseline"]
    (releases[names[1]] / "metrics.json").write_text(json.dumps(metrics))
    html, _ = evidence(ModelCache(releases), names, names[0])
    row = html.split("<tbody>")[1].split("</tr>")[1]
    assert "cell size alone: not measured" in row, "no figure is borrowed from other people"


def test_what_was_not_measured_is_said_once() -> None:
    """A row had four cells that said so, beside each other."""
    name = "leukoscope-densenet201-ball4"
    models = ModelCache({name: ROOT / "model_card" / name})
    html, _ = evidence(models, [name], name)
    row = html.split("<tbody>")[1].split("</tbody>")[0]
    assert row.count("not measured") == 1 and row.count("<td") == 1
    assert "<span>not measured on people: its data name no people</span>" in row
    block = html.split('class="lk-models">')[1].split("<details")[0]
    assert "<small>not measured on people: its data name no people</small>" in block, "on a phone in the same words"
    facts = html.split('<dl class="lk-facts">')[1].split("</dl>")[0]
    assert facts.count("<dt>") == 4 and facts.count("<dd>") == 3, "on a phone, too"
    assert "All its figures<small>healthy donors’ cells</small>" in html, "what else it lacks is not announced"


def test_a_name_without_a_model_is_told_and_the_first_is_shown() -> None:
    names = ("densenet169-cnmc", "densenet201-ball4")
    models = ModelCache({name: ROOT / "model_card" / f"leukoscope-{name}" for name in names})
    html, card = evidence(models, list(names), "<b>nobody")
    assert "No model of that name here: &lt;b&gt;nobody. Below is densenet169-cnmc." in html
    assert "# leukoscope-densenet169-cnmc" in card
    assert "For research only" not in card, "the line on top of the page says so"
    for known in ("", names[1]):
        assert "data-no-card" not in evidence(models, list(names), known)[0]


def test_the_plot_names_the_unit_of_each_release() -> None:
    """The blocks of a release whose data name no people looked like people, and its fields of view like cells."""
    names = ("densenet169-cnmc", "densenet201-ball4")
    models = ModelCache({name: ROOT / "model_card" / f"leukoscope-{name}" for name in names})
    people, blocks = (evidence(models, list(names), name)[0].split('id="lk-each-person"')[1] for name in names)
    assert "Each person in cross-validation: of 100 cells, how many are recognised" in people and "block" not in people
    assert "28 people</span>" in people, "the table says their mean"
    assert "Each block of pictures in cross-validation: of 100 fields of view, how many are recognised" in blocks
    assert blocks.count("blocks, not people</span>") == 4
    assert 'title="block Benign-00: 100 of 100 of 37 fields of view"' in blocks
    plot = blocks.split("<figcaption")[0]
    assert "cells" not in plot and "Each dot is a block of fields of view, not a person: no figure here says" in plot
    assert "no figure here says" not in people


def test_the_plot_says_cross_validation_only_where_it_shows_one(tmp_path: Path) -> None:
    tested = shutil.copytree(ROOT / "model_card" / "leukoscope-densenet169-cnmc", tmp_path / "tested")
    metrics = json.loads((tested / "metrics.json").read_text())
    del metrics["evaluations"][0]["folds"]
    (tested / "metrics.json").write_text(json.dumps(metrics))
    html, _ = evidence(ModelCache({"tested": tested}), ["tested"], "tested")
    assert "Each person in the test: of 100 cells, how many are recognised" in html


def test_an_address_that_cannot_be_listened_at_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio calls each of them a port that is taken."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for host, problem in {
            "127.0.0.1": f"^port {port} is taken; set GRADIO_SERVER_PORT to a free one$",
            "0.0.0.256": r"^0\.0\.0\.256: is no address of this machine \(.+\); give one, such as 127\.0\.0\.1$",
            "192.0.2.1": r"^192\.0\.2\.1: is no address of this machine \(.+\); give one",
        }.items():
            with pytest.raises(LeukoscopeError, match=problem):
                serve(tmp_path, tmp_path / "models.txt", host, port)
    require_free_address("127.0.0.1", port)


@pytest.mark.skipif(sys.platform != "linux", reason="the system may let anybody have these ports")
def test_a_reserved_port_is_told_as_such() -> None:
    reserved = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if int(reserved.read_text()) <= 81:
        pytest.skip("this system reserves no port")
    script = f"from leukoscope.web.app import require_free_address as f; import os\n{_AS_NOBODY}f('127.0.0.1', 81)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stderr.strip().endswith(
        "port 81: this user may not listen there; set GRADIO_SERVER_PORT to 1024 or more"
    )


def test_another_gradio_is_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("leukoscope.web.version", lambda name: "7.0.1")
    monkeypatch.setattr(sys, "argv", ["app.py"])
    assert start.main() == 1
    assert capsys.readouterr().err == (
        "error: gradio 7.0.1 is installed, which this demo does not support; pip install 'gradio>=6.0,<7'\n"
    )
    bounds = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("gradio")]
    assert bounds == [f"gradio>=6.0,<{FIRST_UNSUPPORTED_GRADIO}"]


def test_a_gradio_without_what_uploads_build_on_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = build_demo(ModelCache({}))
    monkeypatch.delattr("gradio.route_utils.GradioUploadFile")
    with pytest.raises(
        LeukoscopeError, match=r"^gradio 6\..* has no GradioUploadFile, on which uploads build; install"
    ):
        keep_uploads_apart(demo)


def test_it_lives_while_every_thread_waits(app: App) -> None:
    async def ask() -> httpx.Response:
        threads = anyio.to_thread.current_default_thread_limiter()
        threads.total_tokens = 1
        threads.acquire_on_behalf_of_nowait("a download")
        with anyio.fail_after(10):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://demo") as visitor:
                return await visitor.get("/healthz")

    assert anyio.run(ask).json() == {"status": "ok", "version": __version__}


def test_as_many_files_may_be_open_as_the_system_allows() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES if before[1] == resource.RLIM_INFINITY else min(OPEN_FILES, before[1])
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_privacy_text_is_folded() -> None:
    (about,) = (block for block in build_demo(ModelCache({})).blocks.values() if block.elem_id == "about")
    assert isinstance(about, gradio.HTML)
    before, folded = about.value.split("<summary>Privacy</summary>")
    assert (
        before.rstrip().endswith('<details name="foot">')
        and "No visit is logged" not in before
        and "ALL: a blast of acute" in before
    )
    assert "No visit is logged" in folded.split("</details>")[0]
