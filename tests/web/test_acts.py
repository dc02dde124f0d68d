"""Clicks: what a button says is parsed in one place, and only there may a value be ignored."""

from __future__ import annotations

import pytest

from leukoscope.web.acts import Act, NoSuchAct, parse_act


def test_what_buttons_say_becomes_typed_values() -> None:
    assert parse_act("stop") == Act("stop")
    assert parse_act("example:3") == Act("example", number=3)
    assert parse_act("smear") == Act("smear") and parse_act("smear:2") == Act("smear", number=2)
    assert parse_act("real") == Act("real") and parse_act("real:2") == Act("real", number=2)
    assert parse_act("add: lab/tiny ") == Act("add", text="lab/tiny")
    assert parse_act("view:turned") == Act("view", text="turned")
    assert parse_act("pitch:0.14") == Act("pitch", um_per_pixel=0.14)
    assert parse_act("pitch:0") == parse_act("pitch:") == Act("pitch"), "the scale is then measured"


@pytest.mark.parametrize(
    "sent",
    ["", "row", "row:x", "row:-1", "row:9999999", "row:1.5", "stop:now", "smear:x", "view", "view:", "pitch:nan",
     "pitch:inf", "pitch:wide", "example:²", "__class__", "visit:0", None, ["row:1"]],
)  # fmt: skip
def test_what_no_button_says_is_refused(sent: object) -> None:
    with pytest.raises(NoSuchAct):
        parse_act(sent)
