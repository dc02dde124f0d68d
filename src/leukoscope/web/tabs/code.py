"""The tab "Code": the named endpoints, and snippets for Python, JavaScript, curl and MCP clients."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from leukoscope.web import panels
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.page import LAST
from leukoscope.web.text import Localised, localised, t

# Name → its inputs and outputs.
ENDPOINTS = {
    "/predict": "image, model, operating_point → outcome, probabilities, grad_cam (PNG), text, decision (JSON)",
    "/field": "image, model, um_per_pixel → reading (JSON), boxes (PNG)",
    "/batch": "files (pictures, zips, CSVs), model, subject_pattern → answers (JSON)",
    "/evidence": "model → metrics (JSON)",
}

_PYTHON = """from gradio_client import Client, handle_file

client = Client("{address}")
prediction = client.predict(handle_file("cell.png"), "{model}", api_name="/predict")
outcome, probabilities, grad_cam, text, decision = prediction
print(outcome, probabilities)
print(text)
"""

_PYTHON_MORE = """from gradio_client import Client, handle_file

client = Client("{address}")
# A smear: micrometres per pixel, or 0 to have the scale read from the red cells.
reading, boxes = client.predict(handle_file("smear.png"), "{field_model}", 0, api_name="/field")
print(reading["summary"])
# Many cells, or a zip of them: a pattern that finds the subject in a file's name, or "".
files = [handle_file("cell.png")]
batch = client.predict(files, "{model}", "", api_name="/batch")
for cell in batch["cells"]:
    print(cell["file"], cell["outcome"])
"""

_JAVASCRIPT = """import {{ Client, handle_file }} from "@gradio/client"

const client = await Client.connect("{address}")
const prediction = await client.predict("/predict", [handle_file("cell.png"), "{model}", ""])
const [outcome, probabilities, gradCam, text, decision] = prediction.data
console.log(outcome, probabilities)
client.close()
"""

_CURL = """file=$(curl -s {address}gradio_api/upload -F files=@cell.png | tr -d '[]"')
event=$(curl -s {address}gradio_api/call/predict -H 'Content-Type: application/json' \\
  -d '{{"data": [{{"path": "'$file'", "meta": {{"_type": "gradio.FileData"}}}}, "{model}", ""]}}' \\
  | cut -d '"' -f 4)
curl -sN {address}gradio_api/call/predict/$event
"""

# Title, language of the editor and text of each program.
SNIPPETS: tuple[tuple[str, Any, str], ...] = (
    ("Python", "python", _PYTHON),
    ("Python: fields and batches", "python", _PYTHON_MORE),
    ("JavaScript", "javascript", _JAVASCRIPT),
    ("curl", "shell", _CURL),
)
_MCP = """{{"mcpServers": {{"leukoscope": {{"url": "{address}gradio_api/mcp/"}}}}}}
"""


def serves_mcp() -> bool:
    """Whether tools can be offered to MCP clients: Gradio's extra `mcp` is installed, in a version that fits it."""
    from gradio.mcp import GradioMCPServer

    # Its class body imports what the extra brings, and goes on without.
    return hasattr(GradioMCPServer, "StreamableHTTPSessionManager")


def snippets(address: str, model: str, field_model: str) -> dict[str, str]:
    """Title → a program that has this server, by its address with a slash at the end, predict with a model.

    A field is read by `field_model`: a model of whole pictures reads none.
    """
    return {title: text.format(address=address, model=model, field_model=field_model) for title, _, text in SNIPPETS}


def _endpoints() -> str:
    rows = panels.table((t("endpoint"), t("inputs_outputs")), list(ENDPOINTS.items()))
    return rows + panels.note(t("endpoints_note"))


def build_tab(demo: gr.Blocks, models: ModelCache, model: gr.Dropdown) -> None:
    """Add the tab to the Blocks being built."""
    with gr.Tab(localised("tab_code"), id="code") as tab:
        gr.HTML(Localised(_endpoints), padding=False)
        # Long lines are wrapped: what scrolls sideways is out of a keyboard's reach. Line numbers
        # would then drift.
        code = partial(gr.Code, interactive=False, elem_classes="lk-code", wrap_lines=True, show_line_numbers=False)
        codes = [
            code(language=language, label=localised("python_more") if text == _PYTHON_MORE else title)
            for title, language, text in SNIPPETS
        ]
        gr.Markdown(Localised(lambda: t("mcp_title") + ("" if serves_mcp() else f" {t('no_mcp')}")))
        protocol = code(language="json", label=localised("mcp_client"), visible=serves_mcp())

    def fill(choice: str | None, visit: gr.Request) -> list[str]:
        assert visit.request is not None
        # Behind a proxy that ends TLS, as on Spaces, the server itself is asked by http.
        proxied = visit.request.headers.get("x-forwarded-proto", "").startswith("https")
        base = visit.request.base_url.replace(scheme="https") if proxied else visit.request.base_url
        address = str(base).removesuffix("gradio_api/")
        # The page's address may name anything: what is no model's name must not stand in a program.
        model = choice if choice and models.is_name(choice) else "owner/name"
        of_fields = next((name for name in (model, *models.names) if models.takes_cut_outs(name) is not False), "")
        return [*snippets(address, model, of_fields or "owner/name").values(), _MCP.format(address=address)]

    gr.on([demo.load, tab.select, model.change], fill, model, [*codes, protocol], **LAST)
