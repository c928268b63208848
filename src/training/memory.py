"""What training keeps in memory, for the budget currency `memory_bytes` and, with the cost of a network as its kernels
compute it, for the memory plan.

memory_bytes = batch x saved elements x bytes each + parameters x bytes each + constant

The currency is a price of network and resolution: what plain torch would keep, whatever trains them. The plan counts
what is really kept (`Execution`, `src/networks/cost.py`).

Covered: weights, gradients, optimizer state, the averaged copy of the weights, autocast's half-precision copies, and
all that autograd keeps of a batch for the backward pass (`Cost.saved`; the first convolution's input, the pictures, is
part of it). The saved bytes of a batch are exact but for the loss (48 bytes a picture with ten classes) and, in the
currency in mixed precision, the indices of max pooling (they stay int64: ResNet-50 keeps 1.9 % more).

Not covered: the framework itself (libraries and the data set: hundreds of MB that every arm has alike); batch norm's
running statistics and their average (8 to 16 bytes a channel); gradients of maps, which the backward pass frees as it
goes (about the two largest maps: 1 to 6 % for EfficientNets, 16 % for ResNet-50 at 64 px); workspaces of convolutions;
and what an allocator keeps of freed memory (glibc after a few steps: 14 to 44 % of the resident set's growth with the
batch). All gradients of the weights are counted together with all that is saved, though backward frees one while it
makes the other: of the parameters' bytes, those 4 are an upper bound.

Free of torch, so that a plan is priced quickly.
"""

from __future__ import annotations

from dataclasses import dataclass

from src.choices import check_choice
from src.networks.cost import Cost, Count
from src.training.options import PRECISIONS, Recipe

_FLOAT = 4  # bytes of a float32
_HALF = 2  # bytes of a bfloat16 or float16


@dataclass(frozen=True)
class MemoryTerms:
    """Bytes for each element that a picture leaves for the backward pass, for each trainable parameter, and in all."""

    bytes_per_saved_element: float
    bytes_per_parameter: float
    constant_bytes: float = 0.0


def memory_terms(recipe: Recipe, precision: str) -> MemoryTerms:
    """Terms of a recipe in an arithmetic.

    Args:
        recipe: its optimizer, momentum and averaging decide what is held for each parameter.
        precision: as resolved for a device: 32-true, tf32, bf16-mixed or 16-mixed.

    Raises:
        ValueError: the precision is unknown, or still `auto`.
    """
    check_choice("hardware.precision", precision, [known for known in PRECISIONS if known != "auto"])
    mixed = precision.endswith("-mixed")
    weight, gradient = _FLOAT, _FLOAT  # autocast keeps both in float32
    average = _FLOAT if recipe.ema_horizon > 0.0 else 0
    autocast = _HALF if mixed else 0  # each weight is cast once a step, and kept for the backward pass
    held = weight + gradient + _optimizer_state(recipe) + average + autocast
    return MemoryTerms(_HALF if mixed else _FLOAT, held)


def _optimizer_state(recipe: Recipe) -> int:
    """Bytes of optimizer state a parameter: two moments of AdamW, a velocity of SGD, the squares and a velocity of
    either RMSprop; without momentum there is no velocity."""
    velocity = _FLOAT if recipe.momentum > 0.0 else 0
    squares = {"adamw": _FLOAT, "sgd": 0, "rmsprop": _FLOAT, "rmsprop_tf": _FLOAT}[recipe.optimizer]
    return squares + (_FLOAT if recipe.optimizer == "adamw" else velocity)


def predicted_bytes(cost: Cost, batch: int, terms: MemoryTerms) -> Count:
    """Bytes that training a network of this cost holds at its peak, with `batch` pictures a step."""
    return (
        batch * cost.saved * terms.bytes_per_saved_element
        + cost.params * terms.bytes_per_parameter
        + terms.constant_bytes
    )
