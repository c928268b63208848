"""What bears a published name must be what was published (guard G13): EfficientNets by their exact parameters."""

from __future__ import annotations

from src.guards import named
from src.networks.build import network_cost
from src.networks.table import Norm
from src.scaling.rules import Rule
from src.scaling.solve import ScaledNetwork

# With 1,000 classes, batch norm included: (input side, parameters). Equal in the released code (tensorflow/tpu), timm
# 1.0.31, torchvision 0.28 and efficientnet-pytorch 0.7.1; printed in arXiv 1905.11946, Table 2, to two digits.
BASES = {"efficientnet_b0": 5_288_548}
ARMS = {
    ("efficientnet_b0", "b0"): (224, 5_288_548),
    ("efficientnet_b0", "b1"): (240, 7_794_184),
    ("efficientnet_b0", "b2"): (260, 9_109_994),
    ("efficientnet_b0", "b3"): (300, 12_233_232),
    ("efficientnet_b0", "b4"): (380, 19_341_616),
    ("efficientnet_b0", "b5"): (456, 30_389_784),
    ("efficientnet_b0", "b6"): (528, 43_040_704),
    ("efficientnet_b0", "b7"): (600, 66_347_960),
}
RELEASED_CLASSES = 1000
RELEASED_NORM = Norm(eps=1e-3, momentum=0.01)  # tensorflow/tpu, efficientnet_builder.py; TensorFlow writes 0.99


def check_released(rule: Rule, scaled: ScaledNetwork) -> None:
    """Stop unless base and arm have the parameters that were published under their names.

    Raises:
        ValueError: they have not; says how many they have, and that another thing needs another name.
    """
    base = scaled.base.network
    side = scaled.base.resolution
    wanted = BASES.get(base.name)
    counted = network_cost(base, side, RELEASED_CLASSES).params
    if wanted is not None and counted != wanted:
        raise ValueError(_differs("network.name", base.name, "parameters with 1,000 classes", counted, wanted))
    if wanted is not None and base.norm != RELEASED_NORM:
        sentence = (
            f"network.name={base.name} was published with batch norm of eps {RELEASED_NORM.eps:g} and momentum"
            f" {RELEASED_NORM.momentum:g}, and this has {base.norm.eps:g} and {base.norm.momentum:g}: give it another"
            f" name, such as network.name={base.name}_changed"
        )
        raise ValueError(named("G13", sentence))
    published = ARMS.get((base.name, rule.name))
    if published is None:
        return
    pixels, wanted = published
    counted = network_cost(scaled.network, scaled.resolution, RELEASED_CLASSES).params
    if counted != wanted:
        raise ValueError(_differs("scaling.name", rule.name, "parameters with 1,000 classes", counted, wanted))
    if scaled.resolution != pixels:
        raise ValueError(_differs("scaling.name", rule.name, "pixels", scaled.resolution, pixels))


def _differs(key: str, name: str, what: str, counted: int, wanted: int) -> str:
    return named(
        "G13",
        f"{key}={name} is a published network with {wanted:,} {what}, and this has {counted:,}: give it another name,"
        f" such as {key}={name}_changed",
    )
