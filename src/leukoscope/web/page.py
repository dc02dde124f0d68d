"""What the tabs share of the page: how events are registered, and the scripts that run in a visitor's browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SESSION_SECONDS = 1800
# Of every event that is no part of the public API.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
# The page itself dims what was there.
QUIET = PRIVATE | {"show_progress": "hidden"}
# The second of two quick clicks counts; where a click says which, "always_last" would send the first one's data again.
LAST, EACH = QUIET | {"trigger_mode": "always_last"}, QUIET | {"trigger_mode": "multiple"}
Updates = dict[Any, Any]
"""Component → its new value."""


def script(name: str) -> str:
    """A file of JavaScript beside this one, without the comment at its beginning."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("//"))


BOX = script("folder.js") + "\n" + script("box.js")

# The result is there.
READY = "() => { delete document.body.dataset.lkBusy; delete document.body.dataset.lkOffline }"

ADDRESS = script("address.js")

# Scrolls to what an event has shown, where it is out of sight, as a result on a phone is.
REVEAL = """() => {
  const many = [...document.querySelectorAll('#field-summary, #batch-summary')].find((one) => one.offsetParent)
  const waits = document.querySelector('#cell-summary .lk-empty') && !document.querySelector('#propose')?.offsetParent
  const shown = waits && many || document.getElementById('cell-summary')
  const top = shown.getBoundingClientRect().top
  const hidden = document.getElementById('notice').getBoundingClientRect().bottom
  if (top < hidden || top > innerHeight * 0.7) shown.scrollIntoView({behavior: 'smooth'})
}"""
