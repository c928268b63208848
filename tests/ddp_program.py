"""One tiny run as a program of its own, which Lightning can start once more for a second device.

python tests/ddp_program.py FOLDER DEVICES PARTS FAULT ...: trains in FOLDER and leaves `result.json` and checkpoints;
with several faults, in folders inside it that are called after them.
FAULT: none, frozen (batch norm keeps its first statistics), shared (it takes them over all devices), native (the same
with the fastest kernels there are), rank0-before, rank1-before, rank0-inside, rank1-inside.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "training")]

RANK = int(os.environ.get("LOCAL_RANK", "0"))
FOLDER, DEVICES, PARTS, *FAULTS = sys.argv[1:]
(Path(FOLDER) / f"rank{RANK}").write_text(str(os.getpid()))
if f"rank{RANK}-before" in FAULTS:  # and before the seconds that the next lines take
    raise RuntimeError("planted before training")

import pytest  # noqa: E402
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from pytorch_lightning.callbacks import Callback  # noqa: E402
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook  # noqa: E402
from training_tiny import CPU, SIDE, TABLE, changed, colours, watch, write_pictures  # noqa: E402

from src.data.module import ImageDataModule  # noqa: E402
from src.networks import fast  # noqa: E402
from src.networks.build import build  # noqa: E402
from src.training.fit import fit  # noqa: E402
from src.training.layout import Layout  # noqa: E402


class Exchanges(Callback):
    """Counts how often the ranks exchanged gradients."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        def exchange(state, bucket):  # type: ignore[no-untyped-def] # torch reads annotations, and not as text
            self.count += 1
            return allreduce_hook(None, bucket)  # type: ignore[arg-type] # what it does without a hook

        if trainer.world_size > 1:
            trainer.strategy.model.register_comm_hook(None, exchange)  # type: ignore[union-attr, operator]


def as_it_is(norm: torch.nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Batch norm that takes nothing from the batch."""
    return torch.nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False)


def train(folder: Path, devices: int, parts: int, fault: str, patch: pytest.MonkeyPatch) -> None:
    """One run."""
    if fault == "frozen":
        patch.setattr(torch.nn.BatchNorm2d, "forward", as_it_is)
    # Not Adam, which makes steps of full size out of the rounding errors of gradients near zero.
    recipe = changed(epochs=2, batch_size=9, dropout=0.0, drop_path=0.0, optimizer="sgd", momentum=0.9)
    if RANK == 0:
        write_pictures(folder)
    options = dataclasses.replace(colours(folder), val_limit=23)  # no multiple of two ranks or of a batch
    data = ImageDataModule(options, SIDE, recipe.batch_size, 10, 0, parts)
    data.prepare_data()
    data.setup()
    pl.seed_everything(0, verbose=False)
    seen: list[int] = []

    def report(**values: Any) -> None:
        seen.append(values["step"])
        if fault == f"rank{RANK}-inside" and values["step"] == 4:
            raise RuntimeError("planted inside training")

    exchanges = Exchanges()
    watch(patch, [exchanges])
    network = build(TABLE, len(data.facts.class_names))
    if fault == "native":
        fast.use(network, "native")
    fitted = fit(
        network,
        data,
        recipe=recipe,
        hardware=dataclasses.replace(CPU, sync_norm=fault in ("shared", "native")),
        folder=folder,
        logger=False,
        report=report,
        lengths=data.cut_run(2 * data.steps_per_epoch),
        seed=0,
        layout=Layout(devices, parts),
    )
    if fitted is not None:
        rows = [asdict(row) for row in fitted.history]
        found = {"rows": rows, "seen": seen, "exchanges": exchanges.count}
        for name, values in (("weights", network.parameters()), ("statistics", network.buffers())):
            found[name] = torch.cat([value.detach().flatten() for value in values]).tolist()
        (folder / "result.json").write_text(json.dumps(found))


def main() -> int:
    """Train; 0 if all went well."""
    torch.set_num_threads(1)
    for fault in FAULTS:
        folder = Path(FOLDER, fault) if len(FAULTS) > 1 else Path(FOLDER)
        folder.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            train(folder, int(DEVICES), int(PARTS), fault, patch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
