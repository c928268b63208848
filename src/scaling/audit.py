"""Audit of what was really built and trained, against what was asked.

Everything is read from the module itself - weight shapes, not attributes such as `out_channels`, which code can edit
without touching a weight - and counted a second time by tools that know nothing of the cost twins: fvcore on the
executed graph, and hooks.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.guards import named
from src.networks.build import RGB, ConvNet
from src.networks.layers import activation
from src.networks.table import ACTIVATIONS, Network
from src.scaling.solve import ScaledNetwork

_COUNTED = ("conv", "linear")  # fvcore's names of the operators that MACs are defined over
_ACTIVATIONS = tuple(type(activation(name)) for name in ACTIVATIONS)


@dataclass(frozen=True)
class Audit:
    """What the built module is: counts for one picture at `resolution` pixels, and a hash of its architecture."""

    macs: int
    params: int
    activations: int
    fvcore_total: int  # fvcore's own total, which adds batch norm and pooling
    repeats: tuple[int, ...]
    channels: tuple[int, ...]
    resolution: int
    architecture_sha256: str
    norm_epsilons: tuple[float, ...]  # of all batch norms, each once


def hash_architecture(model: nn.Module) -> str:
    """SHA-256 over the names and shapes of all parameters and buffers, and over what has no weights: strides, padding,
    dilation and groups of convolutions, pooling, kinds of activation. Rates of dropout and drop path are not in it."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            digest.update(f"{name}:{module.stride},{module.padding},{module.dilation},{module.groups};".encode())
        elif isinstance(module, nn.MaxPool2d):
            digest.update(f"{name}:{module.kernel_size},{module.stride},{module.padding};".encode())
        elif isinstance(module, _ACTIVATIONS):
            digest.update(f"{name}:{type(module).__name__};".encode())
    return digest.hexdigest()


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fvcore_counts(model: nn.Module, resolution: int) -> tuple[int, int]:
    """fvcore's count of convolutions and linear layers, and its total, for one picture in evaluation mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore imports torch.jit.script, which torch deprecates loudly
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model, _one_picture(model, resolution))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
    return int(sum(by_operator[name] for name in _COUNTED)), int(sum(by_operator.values()))


def hooked_activations(model: nn.Module, resolution: int) -> int:
    """Elements of all convolution outputs for one picture, counted by forward hooks."""
    elements = 0

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal elements
        elements += output[0].numel()

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        model(_one_picture(model, resolution))
    finally:
        for handle in handles:
            handle.remove()
    return elements


def _one_picture(model: nn.Module, resolution: int) -> Tensor:
    weight = next(model.parameters())
    return torch.zeros(1, RGB, resolution, resolution, device=weight.device, dtype=weight.dtype)


def inspect_module(model: ConvNet, resolution: int) -> Audit:
    """Count a built (or trained) module by its weights and by executing it once; leaves its mode and statistics as
    they were.

    Raises:
        RuntimeError: it cannot be executed at that size.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            macs, fvcore_total = fvcore_counts(model, resolution)
            activations = hooked_activations(model, resolution)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise RuntimeError(
            named("G1", f"the built network cannot be run on a picture of {resolution} px: {reason}")
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Audit(
        macs,
        sum(p.numel() for p in model.parameters()),
        activations,
        fvcore_total,
        tuple(len(stage) for stage in model.stages),  # type: ignore[arg-type]
        tuple(_width(part) for part in (model.stem, *model.stages, model.head) if not isinstance(part, nn.Identity)),
        resolution,
        hash_architecture(model),
        tuple(sorted({m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)})),
    )


def _width(part: nn.Module) -> int:
    """Output channels of the stem, of a stage or of the head, from the weights of its last convolution; a shortcut's
    convolution stands beside the others."""
    convolutions = [m for name, m in part.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name]
    return int(convolutions[-1].weight.shape[0])


def check(audit: Audit, scaled: ScaledNetwork, *, trained_resolution: int) -> None:
    """Stop unless the module is the network that was asked for, differs from the base on the rule's axes only, and
    costs what its twin says.

    trained_resolution: side of the pictures that really enter training, as the data delivers them.

    Raises:
        RuntimeError: lists every difference, with the guards that found them.
    """
    faults = [("G1", fault) for fault in _differences(audit, scaled.network, scaled.resolution)]
    cost = scaled.cost
    for guard, name, counted, expected in (
        ("G2", "MACs (fvcore, conv + linear)", audit.macs, cost.macs),
        ("G2", "parameters", audit.params, cost.params),
        ("G2", "activations (hooks)", audit.activations, cost.activations),
        ("G7", "side of the training pictures", trained_resolution, scaled.resolution),
    ):
        if counted != expected:
            faults.append((guard, f"{name}: built {counted:,}, asked {expected:,}"))
    faults += [("G1", fault) for fault in _axis_faults(audit, scaled)]
    wanted = scaled.network.norm.eps
    if set(audit.norm_epsilons) != {wanted}:
        faults.append(("G13", f"epsilon of batch norm: built {audit.norm_epsilons}, asked {wanted}"))
    if faults:
        raise RuntimeError(
            f"audit of arm {scaled.arm!r} failed: " + "; ".join(named(guard, fault) for guard, fault in faults)
        )


def check_untrained(model: ConvNet, network: Network) -> None:
    """Stop unless a network that is about to be trained has learnt nothing yet, and normalises as its table says.

    Batch norm shows both: it starts with scale 1 and shift 0, mean 0 and variance 1, and has seen no batch; any
    training moves them all. All arms must start alike, or the study is one of what they were trained on before.

    Raises:
        RuntimeError: names the first layer that is not as new.
    """
    for name, norm in model.named_modules():
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        # A scale of 0 is how a residual branch may start.
        new = bool(((norm.weight == 1) | (norm.weight == 0)).all()) and not norm.bias.any()
        new &= not norm.running_mean.any() and bool((norm.running_var == 1).all())
        if not new or norm.num_batches_tracked.item():
            sentence = f"{name} has been trained before: every arm must start from new weights"
            raise RuntimeError(named("G9", sentence))
        if norm.momentum != network.norm.momentum:
            sentence = f"{name} moves its statistics by {norm.momentum}, the table asks for {network.norm.momentum}"
            raise RuntimeError(named("G13", sentence))


def _differences(audit: Audit, network: Network, resolution: int) -> list[str]:
    pairs = (
        ("blocks per stage", audit.repeats, network.repeats),
        ("channels", audit.channels, network.channels),
        ("input side", audit.resolution, resolution),
    )
    return [f"{name}: built {built}, asked {asked}" for name, built, asked in pairs if built != asked]


def _axis_faults(audit: Audit, scaled: ScaledNetwork) -> list[str]:
    """An axis that got a zero exponent must be the base's; a scaled arm must differ from the base at all."""
    base = scaled.base.network
    moved = {
        "depth": audit.repeats != base.repeats,
        "width": audit.channels != base.channels,
        "resolution": audit.resolution != scaled.base.resolution,
    }
    wanted = {axis: getattr(scaled.asked, axis) != 1.0 for axis in moved}
    faults = [
        f"{axis} differs from the base though the rule leaves it alone"
        for axis in moved
        if moved[axis] and not wanted[axis]
    ]
    if any(wanted.values()) and not any(moved.values()):
        faults.append("nothing differs from the base: this network was not scaled")
    return faults
