"""The plots of a release's card: phantoms with predictions, and the stages of its network."""

from __future__ import annotations

import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from leukoscope.models.release import load_release
from leukoscope.reports.release_plots import network_stages, phantom_samples


def small_network(classes: int = 4) -> nn.Module:
    """A backbone that holds most of the numbers, and a head of several layers."""
    backbone = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 64, 3, stride=2), norm=nn.BatchNorm2d(64)))
    head = nn.Sequential(
        OrderedDict(
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            hidden=nn.Linear(64, 4),
            act=nn.ReLU(),
            fc=nn.Linear(4, classes),
        )
    )
    return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def test_phantoms_say_that_they_are_no_patients(tiny_release: Path) -> None:
    figure = phantom_samples(load_release(tiny_release))
    assert figure.get_suptitle() == "phantoms: synthetic cells, none of a patient; their predictions measure nothing"
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 18 and all(title[0] in "✓✗" for title in titles)


def test_no_answer_is_right_or_wrong_where_phantoms_are_of_no_class(tiny_release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_release, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"label_names": ["Benign", "Early"]}))
    titles = [axes.get_title() for axes in phantom_samples(load_release(copy)).axes]
    assert len(titles) == 18 and all(re.fullmatch(r"(Benign|Early) [01]\.\d\d", title) for title in titles)


def test_stages_open_what_holds_most_and_what_follows_the_pooling() -> None:
    stages = network_stages(small_network(), 32, frozen=["backbone.conv", "head.fc1"])
    assert [(s.name, s.output, s.parameters, s.trains) for s in stages] == [
        ("backbone.conv", (64, 15, 15), 1792, False),
        ("backbone.norm", (64, 15, 15), 128, True),
        ("head.pool", (64, 1, 1), 0, False),
        ("head.flat", (64,), 0, False),
        ("head.hidden", (4,), 260, True),
        ("head.act", (4,), 0, False),
        ("head.fc", (4,), 20, True),
    ]
    assert [s.kind for s in stages][:2] == ["Conv2d", "BatchNorm2d"]


def test_looking_at_a_network_changes_nothing_in_it() -> None:
    network = small_network().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network_stages(network, 32)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
