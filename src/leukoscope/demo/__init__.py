"""What a person meets: the Gradio demo, one file a tab."""

import re
from importlib.metadata import version

from leukoscope import ConfigError

GRADIO = (6, 31)  # the oldest version; as in pyproject.toml


def require_gradio() -> None:
    """Check the version of Gradio before it is imported: the page's components build on it.

    Raises:
        ConfigError: it is one that the demo does not know.
    """
    installed = version("gradio")
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
    if not GRADIO <= numbers < (7, 0):
        raise ConfigError(
            f"gradio {installed} is installed, which this demo does not support; pip install 'gradio>=6.31,<7'"
        )
