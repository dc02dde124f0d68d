"""The tab "Use it from code": the named endpoints, and snippets for Python, JavaScript, curl and MCP clients."""

from __future__ import annotations

from functools import partial

import gradio as gr

from leukoscope import RESEARCH_NOTICE

# Name → what goes in and what comes out.
ENDPOINTS = {
    "/predict": "image, model, operating_point → outcome, probabilities, grad_cam (PNG), text, decision (JSON)",
    "/field": "image, model, um_per_pixel → reading (JSON), boxes (PNG)",
    "/batch": "files (pictures, zips, CSVs), model, subject_pattern → answers (JSON)",
    "/evidence": "model → metrics (JSON)",
}

_PYTHON = """from gradio_client import Client, handle_file

client = Client("{address}")
answer = client.predict(handle_file("cell.png"), "{model}", api_name="/predict")
outcome, probabilities, grad_cam, text, decision = answer
print(outcome, probabilities)
print(text)
"""

_JAVASCRIPT = """import {{ Client, handle_file }} from "@gradio/client"

const client = await Client.connect("{address}")
const answer = await client.predict("/predict", [handle_file("cell.png"), "{model}", ""])
const [outcome, probabilities, gradCam, text, decision] = answer.data
console.log(outcome, probabilities)
"""

_CURL = """file=$(curl -s {address}gradio_api/upload -F files=@cell.png | tr -d '[]"')
event=$(curl -s {address}gradio_api/call/predict -H 'Content-Type: application/json' \\
  -d '{{"data": [{{"path": "'$file'", "meta": {{"_type": "gradio.FileData"}}}}, "{model}", ""]}}' \\
  | cut -d '"' -f 4)
curl -sN {address}gradio_api/call/predict/$event
"""

_MCP = """{{"mcpServers": {{"leukoscope": {{"url": "{address}gradio_api/mcp/"}}}}}}
"""
_NO_MCP = (
    "This copy runs without the Model Context Protocol: install it with `pip install 'gradio[mcp]'` and start the demo "
    "again."
)


def serves_mcp() -> bool:
    """Whether tools can be offered to MCP clients: Gradio's extra `mcp` is installed, in a version that fits it."""
    from gradio.mcp import GradioMCPServer

    # Its class body imports what the extra brings, and goes on without.
    return hasattr(GradioMCPServer, "StreamableHTTPSessionManager")


def snippets(address: str, model: str) -> dict[str, str]:
    """Language → a program that asks this very server about a cell.

    Args:
        address: of the server, with a slash at its end.
        model: a name that it knows.
    """
    written = {"Python": _PYTHON, "JavaScript": _JAVASCRIPT, "curl": _CURL}
    return {language: text.format(address=address, model=model) for language, text in written.items()}


def build_tab(demo: gr.Blocks, model: gr.Dropdown) -> None:
    """Add the tab to the Blocks being built."""
    with gr.Tab("Use it from code", id="code") as tab:
        rows = "\n".join(f"| `{name}` | {about} |" for name, about in ENDPOINTS.items())
        gr.Markdown(
            f"{RESEARCH_NOTICE}\n\n| endpoint | what goes in → what comes out |\n|---|---|\n{rows}\n\n"
            "`operating_point` and `subject_pattern` may be empty, `um_per_pixel` 0. `/healthz` says whether the "
            "server lives."
        )
        # Long lines are wrapped: what scrolls sideways is out of a keyboard's reach.
        code = partial(gr.Code, interactive=False, elem_classes="lk-code", wrap_lines=True)
        codes = [
            code(language="python", label="Python"),
            code(language="javascript", label="JavaScript"),
            code(language="shell", label="curl"),
        ]
        gr.Markdown("**Tools for assistants (MCP).**" + ("" if serves_mcp() else f" {_NO_MCP}"))
        protocol = code(language="json", label="MCP client", visible=serves_mcp())

    def fill(choice: str | None, visit: gr.Request) -> list[str]:
        assert visit.request is not None
        address = str(visit.request.base_url).removesuffix("gradio_api/")
        return [*snippets(address, choice or "owner/name").values(), _MCP.format(address=address)]

    gr.on(
        [demo.load, tab.select, model.change], fill, model, [*codes, protocol], api_visibility="private",
        show_progress="hidden",
    )  # fmt: skip
