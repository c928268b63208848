"""One tiny run as a program of its own, which Lightning can start once more for a second device.

python tests/ddp_program.py FOLDER DEVICES PARTS FAULT: trains in FOLDER and leaves `result.json` and checkpoints.
FAULT: none, frozen (batch norm keeps its first statistics), rank0-before, rank1-before, rank0-inside, rank1-inside.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent / "training")]

import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from training_tiny import CPU, SIDE, TABLE, changed, colours, write_pictures  # noqa: E402

from src.data.module import ImageDataModule  # noqa: E402
from src.networks.build import build  # noqa: E402
from src.training.fit import fit  # noqa: E402
from src.training.layout import Layout  # noqa: E402

RANK = int(os.environ.get("LOCAL_RANK", "0"))


def main() -> int:
    """Train; 0 if all went well."""
    torch.set_num_threads(1)
    folder, devices, parts, fault = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    (folder / f"rank{RANK}").write_text(str(os.getpid()))
    if fault == f"rank{RANK}-before":
        raise RuntimeError("planted before training")
    if fault == "frozen":
        torch.nn.BatchNorm2d.forward = lambda norm, x: torch.nn.functional.batch_norm(  # type: ignore[method-assign]
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False
        )
    # Not Adam, which makes steps of full size out of the rounding errors of gradients near zero.
    recipe = changed(epochs=2, batch_size=9, dropout=0.0, drop_path=0.0, optimizer="sgd", momentum=0.9)
    if RANK == 0:
        write_pictures(folder)
    options = colours(folder)
    data = ImageDataModule(options, SIDE, recipe.batch_size, 10, 0, parts)
    data.prepare_data()
    data.setup()
    pl.seed_everything(0, verbose=False)
    seen: list[int] = []

    def report(**values: Any) -> None:
        seen.append(values["step"])
        if fault == f"rank{RANK}-inside" and values["step"] == 4:
            raise RuntimeError("planted inside training")

    fitted = fit(
        build(TABLE, len(data.facts.class_names)),
        data,
        recipe=recipe,
        hardware=CPU,
        folder=folder,
        logger=False,
        report=report,
        lengths=data.cut_run(2 * data.steps_per_epoch),
        seed=0,
        layout=Layout(devices, parts),
    )
    if fitted is not None:
        rows = [asdict(row) for row in fitted.history]
        weights = torch.cat([parameter.flatten() for parameter in fitted.module.network.parameters()]).tolist()
        (folder / "result.json").write_text(json.dumps({"rows": rows, "weights": weights, "seen": seen}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
