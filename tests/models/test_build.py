"""Start weights are the right ones, whole and safe to read, or the run does not start."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.models.build import (
    FROM_SCRATCH,
    StartWeights,
    _try_picture,
    build_network,
    copy_weights,
    load_start_weights,
)
from leukoscope.models.recipes import Recipe, get_recipe, timm_recipe
from leukoscope.models.weights import backbone_state, classifier_parameters, head_parameters, read_safetensors

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return get_recipe("densenet121")


@pytest.fixture(scope="module")
def donor(recipe: Recipe) -> Tensors:
    """A whole densenet121 with the thousand classes of ImageNet."""
    torch.manual_seed(1)
    return dict(build_network(recipe, 1000).state_dict())


@pytest.fixture(scope="module")
def donor_file(donor: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "densenet121.safetensors"
    save_file(_contiguous(donor), path)
    return path


@pytest.fixture
def network(recipe: Recipe) -> nn.Module:
    torch.manual_seed(2)
    return build_network(recipe, 2)


def _contiguous(tensors: Tensors) -> Tensors:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _saved(tensors: Tensors, path: Path) -> StartWeights:
    save_file(_contiguous(tensors), path)
    return StartWeights(file=path)


def _refusal(network: nn.Module, recipe: Recipe, start: StartWeights) -> str:
    with pytest.raises(LeukoscopeError) as refused:
        load_start_weights(network, recipe, start)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def _backbone(network: nn.Module) -> Tensors:
    return {name: tensor.clone() for name, tensor in network.state_dict().items() if not name.startswith("classifier")}


def test_fills_the_backbone_weights_and_statistics_alike(
    network: nn.Module, recipe: Recipe, donor: Tensors, donor_file: Path
) -> None:
    assert load_start_weights(network, recipe, StartWeights(file=donor_file)) == "densenet121"
    assert all(torch.equal(tensor, donor[name]) for name, tensor in _backbone(network).items())


def test_the_head_is_never_filled_even_when_it_would_fit(
    network: nn.Module, recipe: Recipe, donor: Tensors, tmp_path: Path
) -> None:
    fitting = donor | {"classifier.weight": torch.ones(2, 1024), "classifier.bias": torch.ones(2)}
    before = [p.clone() for p in classifier_parameters(network)]
    load_start_weights(network, recipe, _saved(fitting, tmp_path / "two-classes.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(before, classifier_parameters(network), strict=True))


def test_a_backbone_without_head_is_complete(
    network: nn.Module, recipe: Recipe, donor: Tensors, tmp_path: Path
) -> None:
    headless = {name: tensor for name, tensor in donor.items() if not name.startswith("classifier")}
    assert load_start_weights(network, recipe, _saved(headless, tmp_path / "b.safetensors")) == "b"


def test_the_given_name_is_what_the_card_will_say(network: nn.Module, recipe: Recipe, donor_file: Path) -> None:
    start = StartWeights(file=donor_file, name="channels selected from DenseNet169")
    assert load_start_weights(network, recipe, start) == "channels selected from DenseNet169"


def test_half_precision_files_are_loaded_as_float32(
    network: nn.Module, recipe: Recipe, donor: Tensors, tmp_path: Path
) -> None:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in donor.items()}
    load_start_weights(network, recipe, _saved(halves, tmp_path / "half.safetensors"))
    assert {t.dtype for t in _backbone(network).values() if t.is_floating_point()} == {torch.float32}
    assert torch.equal(network.get_parameter("features.conv0.weight"), halves["features.conv0.weight"].float())


def test_weights_of_another_architecture_are_refused_and_change_nothing(
    network: nn.Module, recipe: Recipe, tmp_path: Path
) -> None:
    other = dict(build_network(get_recipe("densenet201"), 2).state_dict())
    before, path = _backbone(network), tmp_path / "densenet169.safetensors"
    message = _refusal(network, recipe, _saved(other, path))
    assert message.startswith(f"{path}: these weights are not for densenet121 (")
    assert message.endswith("; give weights of densenet121")
    assert " unknown and " in message and " differently shaped tensors, e.g. " in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in _backbone(network).items())


def test_a_tensor_of_another_shape_is_named(network: nn.Module, recipe: Recipe, donor: Tensors, tmp_path: Path) -> None:
    reshaped = donor | {"features.conv0.weight": torch.zeros(64, 3, 3, 3)}
    message = _refusal(network, recipe, _saved(reshaped, tmp_path / "w.safetensors"))
    assert "(0 unknown and 1 differently shaped tensors, e.g. features.conv0.weight has shape (64, 3, 3, 3))" in message


def test_missing_tensors_are_refused_unless_declared(
    network: nn.Module, recipe: Recipe, donor: Tensors, tmp_path: Path
) -> None:
    gap = [name for name in donor if name.startswith("features.denseblock4.denselayer16.conv2")]
    assert gap == ["features.denseblock4.denselayer16.conv2.weight"]
    holey = _saved({name: tensor for name, tensor in donor.items() if name not in gap}, tmp_path / "holey.safetensors")
    assert _refusal(network, recipe, holey) == (
        f"{holey.file}: lacks 1 tensors of densenet121, e.g. {gap[0]}; give a complete file, "
        "or declare the gap with --pretrained_may_miss PATTERN"
    )
    elsewhere = replace(holey, may_miss=("features.denseblock3.*",))
    assert "lacks 1 tensors" in _refusal(network, recipe, elsewhere), "another gap was declared"
    random = network.get_parameter(gap[0]).clone()
    load_start_weights(network, recipe, replace(holey, may_miss=("features.denseblock4.denselayer16.*",)))
    assert torch.equal(network.get_parameter(gap[0]), random), "what is missing stays random"
    assert torch.equal(network.get_parameter("features.conv0.weight"), donor["features.conv0.weight"])


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".ckpt"])
def test_pickled_weights_are_refused_unopened(network: nn.Module, recipe: Recipe, tmp_path: Path, suffix: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    path = tmp_path / f"weights{suffix}"
    torch.save({"features.conv0.weight": Trap()}, path)
    assert _refusal(network, recipe, StartWeights(file=path)) == (
        f"{path}: is a {suffix} file; only .safetensors is read: pickled weights can run code"
    )
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_renamed_to_safetensors_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(LeukoscopeError, match=r"not a whole safetensors file \("):
        read_safetensors(path)


def test_a_network_goes_on_from_another_with_or_without_its_outputs(recipe: Recipe, network: nn.Module) -> None:
    torch.manual_seed(4)
    donor = build_network(recipe, 3)
    new_head = [p.clone() for p in classifier_parameters(network)]
    copy_weights(network, donor, None, source="donor")
    body = _backbone(donor)
    assert all(torch.equal(tensor, body[name]) for name, tensor in _backbone(network).items())
    assert all(torch.equal(a, b) for a, b in zip(new_head, classifier_parameters(network), strict=True))
    copy_weights(network, donor, (2, 0), source="donor")
    for ours, theirs in zip(classifier_parameters(network), classifier_parameters(donor), strict=True):
        assert torch.equal(ours, theirs[[2, 0]])


def test_a_network_does_not_go_on_from_one_built_otherwise(recipe: Recipe, network: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for other in (get_recipe("densenet201"), get_recipe("densenet169_block2")):
        with pytest.raises(LeukoscopeError) as refused:
            copy_weights(network, build_network(other, 2), (0, 1), source="x/y")
        assert str(refused.value).startswith("x/y: is another network than the recipe's (")
        assert str(refused.value).endswith("); follow the release's own recipe")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_from_scratch_changes_nothing_and_asks_no_network(network: nn.Module, recipe: Recipe) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    # A Hub id that cannot be had: asking for it would raise.
    nowhere = replace(recipe, base_model="nobody/no-such-weights")
    assert load_start_weights(network, nowhere, StartWeights(from_scratch=True)) == FROM_SCRATCH
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_an_unreachable_hub_ends_in_one_clear_message_at_once(network: nn.Module, recipe: Recipe) -> None:
    started = time.monotonic()
    message = _refusal(network, replace(recipe, base_model="nobody/no-such-weights"), StartWeights())
    assert time.monotonic() - started < 30
    assert message.startswith(
        "nobody/no-such-weights: its weights cannot be fetched from the Hub (HF_HUB_OFFLINE is set)"
    )
    assert message.endswith(
        "; check the network, give --pretrained_weights FILE.safetensors, or train with --from_scratch"
    )


@pytest.mark.parametrize("base_model", ["no such id", "one/two/three"])
def test_a_malformed_hub_id_is_one_clear_message(network: nn.Module, recipe: Recipe, base_model: str) -> None:
    message = _refusal(network, replace(recipe, base_model=base_model), StartWeights())
    assert message.startswith(f"{base_model}: its weights cannot be fetched from the Hub (Repo id must ")


def test_a_hub_that_hangs_up_is_one_clear_message(
    network: nn.Module, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HangsUp(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), HangsUp)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.file_download.hf_hub_url", lambda *_, **__: f"http://127.0.0.1:{server.server_port}/weights"
    )
    message = _refusal(network, replace(recipe, base_model="nobody/no-such-weights"), StartWeights())
    server.shutdown()
    server.server_close()
    assert message.startswith("nobody/no-such-weights: its weights cannot be fetched from the Hub (Server disconnected")


def test_a_network_built_twice_from_one_seed_is_the_same(recipe: Recipe) -> None:
    torch.manual_seed(3)
    first = build_network(recipe, 2).state_dict()
    torch.manual_seed(3)
    again = build_network(recipe, 2).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


@pytest.mark.parametrize("name", ["efficientnet_b3", "densenet121", "densenet169_block2", "timm/vgg11"])
def test_a_new_head_starts_undecided(name: str) -> None:
    network = build_network(get_recipe(name), 2)
    weight = next(p for p in classifier_parameters(network) if p.ndim > 1)
    bound = weight.shape[1] ** -0.5
    assert 0.5 * bound < weight.abs().max() <= bound * 1.001


def test_inceptions_auxiliary_tensors_are_left_out_of_a_published_file(tmp_path: Path) -> None:
    recipe = timm_recipe("inception_v3", "--recipe")
    network = build_network(recipe, 2)
    published = {k: torch.full_like(v, 0.5) for k, v in network.state_dict().items() if k.split(".")[0] != "fc"}
    published |= {"AuxLogits.conv0.conv.weight": torch.zeros(128, 768, 1, 1), "AuxLogits.fc.bias": torch.zeros(1000)}
    load_start_weights(network, recipe, _saved(published, tmp_path / "inception_v3.safetensors"))
    assert torch.all(network.get_parameter("Conv2d_1a_3x3.conv.weight") == 0.5)


@pytest.mark.parametrize("pooled_norm", [True, False])
def test_a_densenet_that_ends_early_takes_the_weights_of_the_whole_one(pooled_norm: bool, tmp_path: Path) -> None:
    import timm

    whole = timm.create_model("densenet169")
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    recipe = replace(get_recipe("densenet169_block2"), pooled_norm=pooled_norm)
    network = build_network(recipe, 2)
    head = [p.clone() for p in head_parameters(network)]
    load_start_weights(network, recipe, StartWeights(file=tmp_path / "whole.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(head, head_parameters(network), strict=True))
    ours, theirs = backbone_state(network), whole.state_dict()
    blocks = [name for name in ours if "block" in name and "num_batches" not in name]
    assert len(blocks) > 100 and all(torch.equal(ours[name], theirs[name]) for name in blocks)


# Any model of timm


def test_a_model_without_weights_on_the_hub_starts_from_a_file_or_from_scratch() -> None:
    recipe, network = timm_recipe("test_resnet", "--model_name_or_path"), nn.Identity()
    unpublished = replace(recipe, base_model="")
    assert _refusal(network, unpublished, StartWeights()) == (
        f"{recipe.name}: the Hub has no weights of it; give --pretrained_weights FILE.safetensors, or train with "
        "--from_scratch"
    )
    assert load_start_weights(network, unpublished, StartWeights(from_scratch=True)) == FROM_SCRATCH
    assert timm_recipe("legacy_seresnet18", "--model_name_or_path").base_model == ""


@pytest.mark.parametrize("name", ["convnext_atto", "poolformer_s12"])
def test_weights_that_timm_cannot_read_as_a_models_are_refused(name: str, tmp_path: Path) -> None:
    import timm

    recipe = timm_recipe(name, "--model_name_or_path")
    other = _saved(dict(timm.create_model("test_vit").state_dict()), tmp_path / "vit.safetensors")
    message = _refusal(timm.create_model(name, num_classes=2), recipe, other)
    assert message.startswith(f"{other.file}: these weights are not for {name} (")


def test_a_model_without_a_last_layer_is_refused() -> None:
    network: Any = build_network(replace(timm_recipe("test_vit", "--model_name_or_path"), image_size=32), 2)
    network.pretrained_cfg["classifier"] = None
    with pytest.raises(ValueError, match="^it has no last layer that gives classes$"):
        _try_picture(network, 32)


def test_position_embeddings_are_resampled_to_another_picture_size(tmp_path: Path) -> None:
    import timm

    recipe = replace(timm_recipe("test_vit", "--model_name_or_path"), image_size=64)
    donor = timm.create_model("test_vit", num_classes=7)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    network = build_network(recipe, 2)
    load_start_weights(network, recipe, StartWeights(file=tmp_path / "donor.safetensors"))
    assert donor.get_parameter("pos_embed").shape[1] > network.get_parameter("pos_embed").shape[1] == 1 + 4 * 4
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(network.get_parameter(name), donor.get_parameter(name))
    assert torch.equal(network.get_parameter("pos_embed")[:, 0], donor.get_parameter("pos_embed")[:, 0])


@pytest.mark.parametrize(("name", "size", "said"), [
    ("test_vit", 65, "its patches are 16 px wide: the size must be a multiple of that"),
    ("swin_tiny_patch4_window7_224", 3, "its patches are 4 px wide"),
])  # fmt: skip
def test_a_size_that_a_model_of_timm_cannot_take_is_named(name: str, size: int, said: str) -> None:
    recipe = replace(timm_recipe(name, "--model_name_or_path"), image_size=size)
    with pytest.raises(LeukoscopeError, match=rf"cannot be built for pictures of {size} px \({said}"):
        build_network(recipe, 2)


def test_a_training_step_of_efficientnet_copies_no_input_of_an_activation() -> None:
    network = build_network(get_recipe("efficientnet_b3"), 2)
    with torch.profiler.profile() as profile:
        network(torch.zeros(2, 3, 32, 32)).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "aten::silu" in names
    assert "aten::silu_" not in names
