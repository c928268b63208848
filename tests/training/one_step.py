"""One optimizer step of one network in a process of its own, in the layout that its memory plan chose and under an
enforced limit.

`python one_step.py TABLE RULE BATCH LIMIT [STEPS] [KERNELS]` prints a JSON line; RULE is a file of conf/scaling or a
side in pixels.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "training")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch._dynamo  # noqa: E402 - 60 MB that an arm holds as well: Lightning loads it
import yaml  # noqa: E402

from src.networks.build import build  # noqa: E402
from src.networks.fast import use  # noqa: E402
from src.networks.table import Network, Norm, Stage, Stem  # noqa: E402
from src.scaling.lattice import Base  # noqa: E402
from src.scaling.rules import Rule  # noqa: E402
from src.scaling.solve import solve  # noqa: E402
from src.training.hardware import Hardware  # noqa: E402
from src.training.limits import enforce, memory_limit, peak_bytes, restart_peak  # noqa: E402
from src.training.options import HardwareOptions, Recipe  # noqa: E402
from src.training.probe import plan_memory  # noqa: E402

CLASSES = 10


def keys_of(group: str, name: str) -> dict[str, Any]:
    """A file of `conf/`, without what Hydra reads of it."""
    keys: dict[str, Any] = yaml.safe_load((ROOT / "conf" / group / f"{name}.yaml").read_text())
    keys.pop("defaults", None)
    return keys


def scaled(name: str, rule: str) -> tuple[Network, int]:
    """A shipped table at a side in pixels, or scaled by a shipped published rule."""
    keys = keys_of("network", name)
    keys["stem"], keys["norm"] = Stem(**keys["stem"]), Norm(**keys["norm"])
    keys["stages"] = [Stage(**stage) for stage in keys["stages"]]
    table = Network(**keys)
    if rule.isdigit():
        return table, int(rule)
    arm = solve(Base(table, CLASSES), Rule(**keys_of("scaling", rule)), 1.0)
    return arm.network, arm.resolution


def main(name: str, rule: str, batch: str, limit: str, steps: str = "1", kernels: str = "plain") -> None:
    """Plan, enforce, train, and print what was planned and what it took."""
    table, resolution = scaled(name, rule)
    recipe = Recipe("one step", 1, int(batch), "adamw", 1e-3, 0.05, 0.1, 0.01, 0.1, 0.2, 0.2, 0.0)
    hardware = Hardware("cpu", "cpu", "32-true", 1, kernels)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    allowed = memory_limit(HardwareOptions("test", memory_limit=limit), "cpu")
    started = time.perf_counter()
    plan = plan_memory(table, resolution, CLASSES, recipe=recipe, hardware=hardware, limit=allowed)
    planned = time.perf_counter()
    enforce(allowed.bytes, "cpu")
    restart_peak()
    network = build(table, CLASSES, dropout=recipe.dropout, drop_path=recipe.drop_path)
    use(network, kernels)
    network.recompute = plan.layout.recompute
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, fused=True)
    before = [p.detach().clone() for p in network.parameters()]
    for _ in range(int(steps)):
        for part in np.array_split(np.arange(recipe.batch_size), plan.layout.parts):
            images = torch.randn(len(part), 3, resolution, resolution).to(memory_format=torch.channels_last)
            labels = torch.arange(len(part)) % CLASSES
            loss = torch.nn.functional.cross_entropy(network(images).logits, labels)
            (loss * len(part) / recipe.batch_size).backward()
        optimizer.step()
        optimizer.zero_grad()  # as Lightning does: gradients are freed
    moved = sum(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    print(
        json.dumps(
            {
                **dataclasses.asdict(plan),
                "resolution": resolution,
                "peak_bytes": peak_bytes("cpu"),
                "finite": all(bool(p.isfinite().all()) for p in network.parameters()),
                "moved": moved / len(before),
                "plan_seconds": planned - started,
                "step_seconds": (time.perf_counter() - planned) / int(steps),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
