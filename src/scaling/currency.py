"""What a budget is counted in.

An exact currency is a price for every unit of a network's `Cost`, so that it is counted from the stage table; a
measured one is read off a clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from src.choices import check_choice
from src.networks.cost import Cost, Count
from src.networks.table import Network

CURRENCIES = ("macs", "params", "activations", "train_macs", "memory_bytes", "latency_s")


@dataclass(frozen=True)
class Currency:
    """An exact currency. `price` = what one MAC, parameter, activation and saved element cost, plus a constant."""

    name: str
    macs: float = 0
    params: float = 0
    activations: float = 0
    saved: float = 0
    constant: float = 0

    def price(self, cost: Cost) -> Count:
        """Price of a network, or of arrays of them."""
        return (
            self.macs * cost.macs
            + self.params * cost.params
            + self.activations * cost.activations
            + self.saved * cost.saved
            + self.constant
        )


MACS = Currency("macs", macs=1)
PARAMS = Currency("params", params=1)
ACTIVATIONS = Currency("activations", activations=1)


@dataclass(frozen=True)
class Measured:
    """A currency read off a clock. `measure(network, resolution)` must return the same value whenever it is asked
    again, or an arm's own process would solve another network than the sweep did."""

    name: str
    measure: Callable[[Network, int], float]


@dataclass(frozen=True)
class BudgetOptions:
    """What every scaled arm may cost.

    multiple: of the base network's cost in `currency`, as realised.
    currency: macs, params, activations: of one picture's forward pass. memory_bytes: of training at the recipe's batch.
        latency_s: measured on this device, one picture at a time. train_macs: 3 x MACs x pictures seen; the length of
        each run is solved for.
    network: train_macs only: MACs of the networks as a multiple of the base's; null: `multiple`, so that a scaled arm
        trains for the recipe's epochs and the base for `multiple` times as many.
    """

    multiple: float = 2.0
    currency: str = "macs"
    network: Optional[float] = None

    def __post_init__(self) -> None:
        check_choice("budget.currency", self.currency, CURRENCIES)
        for key, value in (("budget", self.multiple), ("budget.network", self.network)):
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{key}={value:g} must be a positive multiple of the base network's cost, such as 2")
        if self.network is not None and self.currency != "train_macs":
            raise ValueError(
                f"budget.network={self.network:g} is for budget.currency=train_macs, where networks and training are"
                f" sized apart; with {self.currency} leave it null"
            )

    @property
    def network_multiple(self) -> float:
        """What the networks themselves are solved to, in multiples of the base."""
        return self.multiple if self.network is None else self.network
