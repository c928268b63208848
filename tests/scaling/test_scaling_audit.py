"""The audit passes what was asked for and stops everything else, one planted fault at a time."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from shipped_arms import B0, MOBILENET_V1, MOBILENET_V2, NANO, RESNET18_SMALL, RESNET50, RULES, SMALL, arm, base
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from src.networks import blocks as blocks_module
from src.networks import build as build_module
from src.networks.blocks import Bottleneck
from src.networks.build import ConvNet, build, network_cost
from src.networks.cost import Cost
from src.networks.layers import conv_norm_cost
from src.networks.table import Network, Norm, Stage, Stem
from src.scaling import audit
from src.scaling.audit import Audit, hash_architecture, hash_weights, hooked_activations, inspect_module
from src.scaling.lattice import Base
from src.scaling.solve import ScaledNetwork

ARMS = [(setting, name) for setting in (NANO, SMALL) for name in RULES]
ARMS += [(setting, name) for setting in (B0, RESNET18_SMALL) for name in ("base", "compound")]


def check(model: ConvNet, scaled: ScaledNetwork, **changes: Any) -> None:
    audited = inspect_module(model, changes.pop("resolution", scaled.resolution))
    audit.check(audited, scaled, **{"trained_resolution": scaled.resolution, **changes})


def nano(name: str, budget: float = 2.0) -> ScaledNetwork:
    return arm(*NANO, name, budget)


def built(scaled: ScaledNetwork) -> ConvNet:
    return build(scaled.network, scaled.base.classes)


@pytest.mark.parametrize(("setting", "name"), ARMS, ids=[f"{s[0]}-{name}" for s, name in ARMS])
def test_shipped_arms_pass_and_are_counted_alike_by_everyone(setting: tuple[str, int, int], name: str) -> None:
    scaled = arm(*setting, name, 2.0)
    model = built(scaled)
    audited = inspect_module(model, scaled.resolution)
    audit.check(audited, scaled, trained_resolution=scaled.resolution)
    assert (audited.macs, audited.params, audited.activations) == (
        scaled.cost.macs,
        scaled.cost.params,
        scaled.cost.activations,
    )
    assert audited.fvcore_total == audited.macs + 2 * audited.activations
    assert (audited.repeats, audited.channels) == (scaled.network.repeats, scaled.network.channels)
    assert audited.resolution == scaled.resolution and audited.architecture_sha256 == hash_architecture(model)
    model.to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, scaled.resolution, scaled.resolution, device="meta"))
    assert counter.get_total_flops() == 2 * scaled.cost.macs


def edited_attributes(model: ConvNet) -> ConvNet:
    """A public attempt: `out_channels` is edited, not a single weight is."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.out_channels *= 2
            module.in_channels *= 2
    return model


def test_editing_attributes_is_not_scaling() -> None:
    scaled = nano("width")
    plain = build(scaled.base.network, 10)
    edited = edited_attributes(copy.deepcopy(plain))
    assert inspect_module(edited, 32) == inspect_module(plain, 32)
    with pytest.raises(RuntimeError) as stopped:
        check(edited, scaled)
    message = str(stopped.value)
    assert "audit of arm 'width' failed" in message
    assert "nothing differs from the base: this network was not scaled" in message
    assert f"channels: built {scaled.base.network.channels}, asked {scaled.network.channels}" in message
    assert f"parameters: built {scaled.base.cost.params:,}, asked {scaled.cost.params:,}" in message


@pytest.mark.parametrize("name", ["depth", "width", "resolution", "compound"])
def test_the_base_in_place_of_an_arm_is_found(name: str) -> None:
    scaled = nano(name)
    model = build(scaled.base.network, 10)
    with pytest.raises(RuntimeError, match="was not scaled"):
        check(model, scaled, resolution=32, trained_resolution=32)
    check(model, nano("base"))


def narrower(scaled: ScaledNetwork) -> ConvNet:
    stem, *stages, last, head = scaled.network.channels
    return build(scaled.network.with_shape(scaled.network.repeats, (stem, *stages, last - 4, head)), 10)


def narrower_stem(scaled: ScaledNetwork) -> ConvNet:
    return build(scaled.network.with_shape(scaled.network.repeats, (8, *scaled.network.channels[1:])), 10)


def narrower_head(scaled: ScaledNetwork) -> ConvNet:
    return build(scaled.network.with_shape(scaled.network.repeats, (*scaled.network.channels[:-1], 8)), 10)


def missing_block(scaled: ScaledNetwork) -> ConvNet:
    model = built(scaled)
    model.stages[-1] = nn.Sequential(*list(model.stages[-1].children())[:-1])
    return model


def other_classes(scaled: ScaledNetwork) -> ConvNet:
    return build(scaled.network, 11)


def other_stride(scaled: ScaledNetwork) -> ConvNet:
    model = built(scaled)
    model.stem[0].stride = (1, 1)  # type: ignore[assignment]
    return model


def no_gate(scaled: ScaledNetwork) -> ConvNet:
    model = built(scaled)
    model.stages[0][0].excite = nn.Identity()  # type: ignore[index]
    return model


def larger_kernel(scaled: ScaledNetwork) -> ConvNet:
    stages = (dataclasses.replace(scaled.network.stages[0], kernel=5), *scaled.network.stages[1:])
    return build(dataclasses.replace(scaled.network, stages=stages), 10)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (narrower, "channels: built"),
        (narrower_stem, "channels: built (8, "),
        (narrower_head, ", 8), asked"),
        (missing_block, "blocks per stage: built"),
        (other_classes, "parameters: built"),
        (other_stride, "activations (hooks): built"),
        (no_gate, "parameters: built"),
        (larger_kernel, "MACs (fvcore, conv + linear): built"),
    ],
)
def test_another_network_than_the_one_asked_for_is_found(fault: Callable[[ScaledNetwork], ConvNet], told: str) -> None:
    scaled = nano("compound")
    check(built(scaled), scaled)
    with pytest.raises(RuntimeError) as stopped:
        check(fault(scaled), scaled)
    assert told in str(stopped.value)


def test_a_wrong_input_side_is_found_in_the_count_and_in_the_data() -> None:
    scaled = nano("resolution")
    model = built(scaled)
    with pytest.raises(RuntimeError, match=f"input side: built 32, asked {scaled.resolution}"):
        check(model, scaled, resolution=32)
    with pytest.raises(RuntimeError) as stopped:
        check(model, scaled, trained_resolution=32)
    told = f"side of the training pictures: built 32, asked {scaled.resolution} (guard G7)"
    assert str(stopped.value) == f"audit of arm 'resolution' failed: {told}"


def regrown(scaled: ScaledNetwork, **changes: Any) -> ScaledNetwork:
    """The arm with another shape and its cost: consistent in itself, but not what its rule allows."""
    changed = dataclasses.replace(scaled, **changes)
    return dataclasses.replace(changed, cost=network_cost(changed.network, changed.resolution, 10))


@pytest.mark.parametrize("name", ["depth", "width", "resolution"])
@pytest.mark.parametrize("axis", ["depth", "width", "resolution"])
def test_a_pure_arm_that_touched_another_axis_is_found(name: str, axis: str) -> None:
    scaled, donor = nano(name), nano(axis)
    repeats = (donor if axis == "depth" else scaled).network.repeats
    channels = (donor if axis == "width" else scaled).network.channels
    resolution = (donor if axis == "resolution" else scaled).resolution
    touched = regrown(scaled, network=scaled.network.with_shape(repeats, channels), resolution=resolution)
    if axis == name:
        check(built(touched), touched)
        return
    with pytest.raises(RuntimeError) as stopped:
        check(built(touched), touched)
    message = f"audit of arm {name!r} failed: {axis} differs from the base though the rule leaves it alone (guard G1)"
    assert str(stopped.value) == message


def test_the_base_may_not_differ_from_itself() -> None:
    scaled = nano("base")
    touched = regrown(scaled, network=nano("width").network)
    with pytest.raises(RuntimeError, match="width differs from the base though the rule leaves it alone"):
        check(built(touched), touched)


def test_all_differences_are_listed() -> None:
    scaled = nano("compound")
    with pytest.raises(RuntimeError) as stopped:
        check(missing_block(scaled), scaled, trained_resolution=30)
    message = str(stopped.value)
    for part in ("blocks per stage", "MACs", "parameters", "activations", "side of the training pictures: built 30"):
        assert part in message


@pytest.mark.parametrize("field", ["macs", "params", "activations"])
@pytest.mark.parametrize("module", [blocks_module, build_module], ids=["block", "stem and head"])
def test_a_twin_that_is_off_by_one_is_found(module: object, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = nano("base").base

    def off_by_one(cost: Cost, *arguments: Any) -> Cost:
        counted = conv_norm_cost(cost, *arguments)
        return dataclasses.replace(counted, **{field: getattr(counted, field) + 1})

    monkeypatch.setattr(module, "conv_norm_cost", off_by_one)
    scaled = dataclasses.replace(nano("base"), cost=network_cost(start.network, 32, 10))
    assert scaled.cost != nano("base").cost
    with pytest.raises(RuntimeError, match=r"audit of arm 'base' failed: (MACs|parameters|activations)[^;]*$"):
        check(built(scaled), scaled)
    monkeypatch.undo()
    check(built(scaled), nano("base"))


def test_inspection_leaves_the_module_as_it_was() -> None:
    torch.manual_seed(0)
    model = built(nano("base")).train()
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))  # running statistics that are no longer the initial ones
    model.stem.eval()  # a frozen part in a training network
    modes = {name: module.training for name, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    first, second = inspect_module(model, 32), inspect_module(model, 32)
    assert first == second
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_hooks_are_removed_when_the_network_fails() -> None:
    model = built(nano("base")).eval()
    model.classifier = nn.Linear(7, 3)
    with pytest.raises(RuntimeError):
        hooked_activations(model, 32)
    assert not any(module._forward_hooks for module in model.modules())


def test_counting_does_not_depend_on_training_layout_or_type() -> None:
    model = built(nano("base"))
    plain = inspect_module(model, 32)
    assert inspect_module(model.train().to(memory_format=torch.channels_last), 32) == plain
    assert inspect_module(model.double(), 32) == plain
    dropped = build(nano("base").network, 10, dropout=0.3, drop_path=0.3)
    assert inspect_module(dropped, 32) == plain


def test_counts_scale_with_the_input_side_and_shapes_do_not() -> None:
    model = built(nano("base"))
    small, large = inspect_module(model, 32), inspect_module(model, 64)
    assert large.macs > 3.9 * small.macs
    same = {"macs", "fvcore_total", "activations", "resolution"}
    assert {f.name for f in dataclasses.fields(Audit) if getattr(small, f.name) != getattr(large, f.name)} == same


def test_equal_shapes_have_equal_hashes_and_others_have_not() -> None:
    torch.manual_seed(0)
    scaled = {name: built(nano(name)) for name in RULES}
    hashes = {name: hash_architecture(model) for name, model in scaled.items()}
    assert hashes["base"] == hashes["resolution"]  # more pixels, the same weights
    assert len(set(hashes.values())) == len(RULES) - 1
    assert hash_architecture(built(nano("base"))) == hashes["base"]  # other weights of the same shapes
    assert hash_architecture(build(nano("base").network, 11)) != hashes["base"]
    assert hash_architecture(edited_attributes(built(nano("base")))) == hashes["base"]


def lazily(network: Network) -> ConvNet:
    with torch.device("meta"):
        return build(network, 10)


def test_networks_that_differ_in_what_has_no_weights_have_other_hashes() -> None:
    strided, flat = (lazily(base(*setting).network) for setting in (B0, SMALL))  # only strides differ
    assert [p.shape for p in strided.parameters()] == [p.shape for p in flat.parameters()]
    resnet = base(*RESNET50).network
    stem = resnet.stem
    stages = tuple(dataclasses.replace(stage, stride=stage.stride % 2 + 1) for stage in resnet.stages)
    others = [
        dataclasses.replace(resnet, stem=dataclasses.replace(stem, stride=1)),
        dataclasses.replace(resnet, stem=dataclasses.replace(stem, pool=1)),
        dataclasses.replace(resnet, stem=dataclasses.replace(stem, pool=3)),
        dataclasses.replace(resnet, stages=stages),
        dataclasses.replace(resnet, activation="relu6"),
    ]
    hashes = [hash_architecture(lazily(network)) for network in (resnet, *others)]
    hashes += [hash_architecture(strided), hash_architecture(flat)]
    assert len(set(hashes)) == len(hashes)
    with torch.device("meta"):
        dilated = lazily(resnet)
        dilated.stages[0][1].spatial[0].dilation = (2, 2)  # type: ignore[index]
        regularised = build(resnet, 10, dropout=0.2, drop_path=0.2)
    assert hash_architecture(dilated) not in hashes
    assert hash_architecture(regularised) == hashes[0]


def other_kinds(resolution: int = 16) -> ScaledNetwork:
    """A base with pooling, groups and shortcuts, without a head."""
    stages = (
        Stage("separable", 3, 1, 8, 2),
        Stage("bottleneck", 3, 2, 24, 2, groups=3, reduce=2),
        Stage("bottleneck", 3, 1, 48, 1, reduce=4),
    )
    network = Network("kinds", resolution, Stem(8, 1, pool=2), stages, 0, activation="relu", channel_divisor=12)
    network_base = Base(network, 10)
    return dataclasses.replace(nano("base"), base=network_base, network=network, resolution=16, cost=network_base.cost)


def narrower_inside(scaled: ScaledNetwork) -> ConvNet:
    model = built(scaled)
    model.stages[1][1] = Bottleneck(  # type: ignore[index]
        24, dataclasses.replace(scaled.network.stages[1], reduce=4), 1, Norm(), "relu", 0.0
    )
    return model


def ungrouped(scaled: ScaledNetwork) -> ConvNet:
    return build(
        dataclasses.replace(
            scaled.network, stages=tuple(dataclasses.replace(s, groups=1) for s in scaled.network.stages)
        ),
        10,
    )


def headed(scaled: ScaledNetwork) -> ConvNet:
    return build(dataclasses.replace(scaled.network, head_channels=48), 10)


def unpooled(scaled: ScaledNetwork) -> ConvNet:
    return build(dataclasses.replace(scaled.network, stem=Stem(8, 2)), 10)


def wider_last(scaled: ScaledNetwork) -> ConvNet:
    return build(scaled.network.with_shape(scaled.network.repeats, (8, 8, 24, 60)), 10)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (narrower_inside, "MACs (fvcore, conv + linear): built"),
        (ungrouped, "parameters: built"),
        (headed, "channels: built (8, 8, 24, 48, 48), asked (8, 8, 24, 48)"),
        (unpooled, "activations (hooks): built"),
        (wider_last, "channels: built (8, 8, 24, 60), asked (8, 8, 24, 48)"),
    ],
)
def test_other_kinds_of_blocks_are_audited_as_well(fault: Callable[[ScaledNetwork], ConvNet], told: str) -> None:
    scaled = other_kinds()
    check(built(scaled), scaled)
    with pytest.raises(RuntimeError) as stopped:
        check(fault(scaled), scaled)
    assert told in str(stopped.value)


def test_widths_are_read_from_the_main_path_and_not_from_a_shortcut() -> None:
    scaled = other_kinds()
    model = built(scaled)
    shortcut = model.stages[-1][0].shortcut  # type: ignore[index]
    shortcut[0] = nn.Conv2d(24, 1, 1, bias=False)
    shortcut[1] = nn.BatchNorm2d(1)  # one channel, broadcast by the addition
    assert inspect_module(model, 16).channels == scaled.network.channels


@pytest.mark.parametrize("setting", [MOBILENET_V1, MOBILENET_V2, RESNET50], ids=lambda setting: setting[0])
def test_other_baselines_pass(setting: tuple[str, int, int]) -> None:
    name, _, classes = setting
    start = base(name, 97, classes)
    scaled = dataclasses.replace(nano("base"), base=start, network=start.network, resolution=97, cost=start.cost)
    check(built(scaled), scaled)


def test_the_hash_of_weights_follows_every_value_and_only_values() -> None:
    torch.manual_seed(0)
    model = built(nano("base"))
    before = hash_weights(model.state_dict())
    assert hash_weights(copy.deepcopy(model).to(memory_format=torch.channels_last).state_dict()) == before
    assert hash_weights(built(nano("base")).state_dict()) != before
    for name in ("stem.0.weight", "stages.1.0.excite.reduce.bias", "head.1.running_var"):
        other = copy.deepcopy(model)
        other.state_dict()[name].view(-1)[0] += 1e-3
        assert hash_weights(other.state_dict()) != before
