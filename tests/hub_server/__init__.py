"""A small Hub on this machine's loopback, so that the real client library makes the whole trip in a test."""

from hub_server.api import READ_TOKEN, USER, WRITE_TOKEN
from hub_server.faults import Fault
from hub_server.server import Hub, serving

__all__ = ["READ_TOKEN", "USER", "WRITE_TOKEN", "Fault", "Hub", "serving"]
