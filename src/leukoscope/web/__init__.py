"""What a person meets: the Gradio demo, one file per tab."""

from importlib.metadata import version

from leukoscope import LeukoscopeError

FIRST_UNSUPPORTED_GRADIO = 7  # as in pyproject.toml


def require_gradio() -> None:
    """Check the version of Gradio before it is imported: `web.upload` builds on its internals.

    Raises:
        LeukoscopeError: it is one that the demo does not know.
    """
    installed = version("gradio")
    if int(installed.partition(".")[0]) >= FIRST_UNSUPPORTED_GRADIO:
        raise LeukoscopeError(
            f"gradio {installed} is installed, which this demo does not support; pip install 'gradio>=6.0,<7'"
        )
