"""A small Hub on this machine's loopback, so that the real client library makes the whole trip in a test."""

from hub_server.api import READ_TOKEN, USER, WRITE_TOKEN
from hub_server.server import Fault, Hub, serving

__all__ = ["READ_TOKEN", "USER", "WRITE_TOKEN", "Fault", "Hub", "serving"]
