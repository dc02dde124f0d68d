"""Where the demo listens; read before Gradio is imported, which fails on a bad port with a traceback of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from leukoscope import LeukoscopeError

DEFAULT_PORT = 7860


class Address(NamedTuple):
    """Host and port to bind."""

    host: str
    port: int


def server_address(environment: Mapping[str, str] = os.environ) -> Address:
    """Loopback and the port that GRADIO_SERVER_PORT names, or 7860; an error where it is no port.

    Inside a Hugging Face Space (SPACE_ID is set) the container listens to the Space's proxy.
    """
    port = environment.get("GRADIO_SERVER_PORT", str(DEFAULT_PORT))
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise LeukoscopeError(f"GRADIO_SERVER_PORT={port}: is no port; give a number from 1 to 65535")
    return Address("0.0.0.0" if environment.get("SPACE_ID") else "127.0.0.1", int(port))
