"""Which parameters are a network's last layer, its head and its backbone."""

from __future__ import annotations

from dataclasses import replace

import timm
import torch

from leukoscope.models.build import build_network
from leukoscope.models.recipes import get_recipe, timm_recipe
from leukoscope.models.weights import backbone_state, classifier_names, classifier_parameters, freeze, head_parameters


def test_a_frozen_backbone_of_a_timm_model_is_all_but_its_last_layer() -> None:
    network = build_network(replace(timm_recipe("test_vit", "--model_name_or_path"), image_size=32), 2)
    network.train()
    freeze(network, ("backbone",))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias"}
    assert not network.get_submodule("blocks.0").training
    assert backbone_state(network).keys() == network.state_dict().keys() - trained


def test_a_head_of_several_layers_is_trained_as_a_whole() -> None:
    network = build_network(replace(get_recipe("densenet169_block2"), image_size=32), 2).train()
    freeze(network, ("backbone",))
    trained = [p for p in network.parameters() if p.requires_grad]
    assert [id(p) for p in trained] == [id(p) for p in head_parameters(network)] and len(trained) == 4
    in_training = {name.split(".")[0] for name, module in network.named_modules() if module.training}
    assert in_training == {"", "classifier"}
    assert all(module.training for module in network.get_submodule("classifier").modules())
    assert backbone_state(network).keys() == {
        f"features.{name}" for name in network.get_submodule("features").state_dict()
    }
    assert [p.shape for p in classifier_parameters(network)] == [(2, 512), (2,)]


def test_named_modules_of_a_timm_model_are_frozen_alone() -> None:
    network = timm.create_model("test_resnet", num_classes=2).train()
    freeze(network, ("conv1",))
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == [
        name for name, _ in network.named_parameters() if name.startswith("conv1.")
    ]


def test_a_distilled_network_has_two_last_layers() -> None:
    with torch.device("meta"):
        network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3)
    assert classifier_names(network) == ["head", "head_dist"]
    assert len(head_parameters(network)) == len(classifier_parameters(network)) == 4
