"""The one typed row a run leaves behind, and the one table of metrics.

Everything that is later shown about a run (record.json, the W&B row, a line of the report) is read from a `RunRecord`,
so that no number exists in two versions. Accuracies are fractions in [0, 1]; losses are mean cross-entropy in nats
without label smoothing; MACs are multiply-adds of convolutions and linear layers for one picture; sizes are bytes;
times are seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD_FILE = "record.json"
SEAL = "seal"  # key in the file alone: the hash of all others, by which a later edit is found

# Fields in which two runs of one command may differ on one CPU machine; all others must be identical.
VOLATILE_FIELDS = frozenset(
    {
        "study",
        "seconds",
        "train_seconds",
        "images_per_second",
        "seconds_per_epoch",
        "step",
        "step_seconds",
        "eager_step_seconds",
        "peak_memory_bytes",
        "measured_memory_bytes",
        "memory_limit_bytes",
        "started",
        "attempts",
        "checkpoint_sha256",  # the file holds clock times too; the weights have a hash of their own
        "wandb_id",
        "wandb_mode",
    }
)


@dataclass(frozen=True)
class RunRecord:
    """What one finished run was, cost and reached. Flat: every field is a JSON scalar.

    `val_*` and `test_*` without a prefix are taken from the checkpoint that validation chose (`best_epoch`); the test
    split is evaluated once, with that checkpoint. `asked_*` is what the rule wanted, the name without prefix is what
    the trained network realises (audited on the built module).
    """

    # Identity
    study: str
    arm: str
    seed: int
    status: str
    # What was asked and what was realised
    network: str
    data: str
    recipe: str
    budget: float  # asked cost as a multiple of the base's, in `currency`; of coefficients, what they cost
    currency: str  # macs, params, activations, train_macs, memory_bytes or latency_s
    snapped_budget: float  # the common multiple that all arms of this budget are solved to
    asked_depth: float  # multiplier of the base's repeats
    asked_width: float  # multiplier of the base's channels
    asked_resolution: float  # multiplier of the base's input side
    depth: float  # realised blocks / base blocks
    width: float  # realised: sum of stage channels / base's
    resolution: int  # realised input side, pixels
    base_resolution: int  # pixels
    blocks: int
    native_resolution: int  # stored pixels of the data: beyond it, resolution adds compute and no information
    asked_share_depth: float  # share of log-MACs growth that the rule asks for (0 where it asks for none)
    asked_share_width: float
    asked_share_resolution: float
    share_depth: float  # realised share of log-MACs growth; the three sum to 1 (0 for the base)
    share_width: float
    share_resolution: float
    # Cost
    price: float  # of this run, in the budget's currency
    base_price: float
    macs: int
    base_macs: int
    params: int
    activations: int  # elements of convolution outputs, one picture
    fvcore_total: int  # fvcore's own total for one picture, batch norm and pooling included
    train_macs: int  # of the whole run: 3 x MACs x pictures seen (forward, and twice that backward)
    predicted_memory_bytes: int  # of training, from the cost twins
    # Result, at the validation-chosen epoch
    val_accuracy: float
    val_loss: float
    test_accuracy: float
    test_loss: float
    best_epoch: int  # counted from 1
    # Curves: best and last value, and the epoch (from 1) of the best
    epochs: int
    best_train_accuracy: float
    best_train_accuracy_epoch: int
    last_train_accuracy: float
    best_train_loss: float
    best_train_loss_epoch: int
    last_train_loss: float
    best_val_accuracy: float
    best_val_accuracy_epoch: int
    last_val_accuracy: float
    best_val_loss: float
    best_val_loss_epoch: int
    last_val_loss: float
    # Liveness and honesty
    steps: int  # optimizer steps taken
    skipped_steps: int  # of these left out by loss scaling
    ema_updates: int
    ema_distance: float  # relative L2 distance between averaged and raw weights at the end of training
    test_openings: int
    classes: int
    train_pictures: int
    val_pictures: int
    test_pictures: int
    # Speed and memory
    seconds: float  # the whole run, start-up included
    train_seconds: float
    images_per_second: float  # training, median over epochs
    seconds_per_epoch: float  # one pass over the training pictures at that speed, without validation
    peak_memory_bytes: int
    measured_memory_bytes: int  # expected before training from a measured probe; 0: none was needed
    memory_limit_bytes: int  # what training was allowed to hold on a device
    micro_batch: int  # pictures over which batch norm took its statistics: those of all devices where they share them
    parts: int  # micro-batches of a step on each device
    recompute: int  # 1: the forward pass was run again in the backward pass, to remember less
    # Environment
    device: str
    devices: int
    precision: str
    kernels: str  # what computed the training step: plain, torch or native
    step: str  # how steps were taken: eager, graphs or compiled
    step_seconds: float  # forward and backward pass in that way; 0: not measured
    eager_step_seconds: float  # the same taken eagerly
    threads: int
    python_version: str
    torch_version: str
    lightning_version: str
    hydra_version: str
    wandb_version: str
    fvcore_version: str
    platform: str
    code_revision: str
    # Provenance
    config_hash: str
    recipe_hash: str  # of all that arms must have in common beside the data: the whole recipe, augmentation, norms
    data_fingerprint: str
    architecture_sha256: str  # names and shapes of all weights of the trained module
    weights_sha256: str  # values of the weights that the test split was evaluated with
    predictions_sha256: str  # stored labels and logits of validation and test
    wandb_id: str
    wandb_mode: str
    started: str  # ISO 8601, UTC; of the attempt that finished
    attempts: int  # how often the arm was started until it finished
    checkpoint_sha256: str = ""  # of the file whose weights the test split was evaluated with; "": of an older record
    notes: str = ""  # loud lines: what was asked for and not granted, warnings that belong to the number

    def to_mapping(self) -> dict[str, Any]:
        """The record as a flat, JSON-ready mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunRecord:
        """Check a mapping field by field and build the record.

        Raises:
            ValueError: a field is missing, unknown, of the wrong type or not finite.
        """
        types = typing.get_type_hints(cls)
        required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        missing = sorted(required - values.keys())
        unknown = sorted(values.keys() - types.keys())
        if missing or unknown:
            raise ValueError(f"record has missing fields {missing} and unknown fields {unknown}")
        for name, value in values.items():
            kind = types[name]
            fits = (
                isinstance(value, int | float) and not isinstance(value, bool)
                if kind is float
                else isinstance(value, kind) and not isinstance(value, bool)
            )
            if not fits:
                raise ValueError(f"record field {name}={value!r} should be {kind.__name__}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"record field {name}={value!r} is not finite")
            if kind in (int, float) and abs(value) >= 2**63:
                raise ValueError(f"record field {name} has {len(str(value))} digits, which no run leaves")
            if name.endswith("accuracy") and not 0.0 <= value <= 1.0:
                raise ValueError(f"record field {name}={value!r} is no fraction of pictures in [0, 1]")
            if name in ("base_macs", "base_price") and value <= 0:
                raise ValueError(f"record field {name}={value!r} is not positive")
            if name == "currency" and value not in CURRENCY_LABELS:
                raise ValueError(f"record field {name}={value!r} is none of {', '.join(CURRENCY_LABELS)}")
            if kind is str and not value.isprintable() and name != "notes":
                raise ValueError(f"record field {name}={value!r} holds characters that no name has")
        return cls(**values)

    def write(self, folder: Path) -> Path:
        """Write `record.json` into `folder` so that a reader never sees half a file.

        Raises:
            ValueError: a field is of the wrong type or not finite, so that the file could not be read again.
        """
        path = folder / RECORD_FILE
        checked = self.from_mapping(self.to_mapping()).to_mapping()
        write_atomically(path, json.dumps({**checked, SEAL: _seal(checked)}, indent=1) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read one record.

        Raises:
            ValueError: the file is not JSON or not a complete record; names the file.
        """
        try:
            values = json.loads(path.read_text())
            if isinstance(values, dict):
                values.pop(SEAL, None)
            return cls.from_mapping(values)
        except (ValueError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a valid record: {error}") from error


def is_edited(path: Path) -> bool:
    """Whether a record's file was changed after it was written; older files have no seal that could tell."""
    values = json.loads(path.read_text())
    seal = values.pop(SEAL, None)
    return seal is not None and seal != _seal(values)


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def digest_arrays(arrays: Mapping[str, Any]) -> str:
    """SHA-256 over the names and bytes of NumPy arrays, in this order."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` in one rename; a crash leaves the old file or the new one, never a mixture."""
    # A random name: processes on two machines that share the folder may have the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Metric:
    """How one field of the record is shown: axis label with its unit, and the transform from stored to shown value."""

    field: str
    label: str
    transform: Callable[[float], float]
    digits: int

    def show(self, record: RunRecord) -> float:
        """The value of this metric in the unit of its label."""
        return self.transform(float(getattr(record, self.field)))

    def format(self, value: float) -> str:
        """A shown value as text."""
        return f"{value:.{self.digits}f}"


CURRENCY_LABELS = {
    "macs": "MACs",
    "params": "parameters",
    "activations": "activations",
    "train_macs": "training MACs",
    "memory_bytes": "training bytes",
    "latency_s": "seconds a picture",
}


def _same(value: float) -> float:
    return value


def _percent(value: float) -> float:
    return 100.0 * value


def _mega(value: float) -> float:
    return value / 1e6


def _tera(value: float) -> float:
    return value / 1e12


def _mebi(value: float) -> float:
    return value / 2**20


METRICS: dict[str, Metric] = {
    metric.field: metric
    for metric in (
        Metric("test_accuracy", "test accuracy (%)", _percent, 2),
        Metric("val_accuracy", "validation accuracy (%)", _percent, 2),
        Metric("test_loss", "test loss (nats)", _same, 4),
        Metric("val_loss", "validation loss (nats)", _same, 4),
        Metric("macs", "FLOPs, counted as MACs (M)", _mega, 2),
        Metric("params", "parameters (M)", _mega, 3),
        Metric("activations", "conv activations (M elements)", _mega, 3),
        Metric("train_macs", "training MACs (T)", _tera, 3),
        Metric("depth", "depth (x base)", _same, 2),
        Metric("width", "width (x base)", _same, 2),
        Metric("resolution", "resolution (px)", _same, 0),
        Metric("images_per_second", "training speed (images/s)", _same, 0),
        Metric("seconds_per_epoch", "training epoch (s)", _same, 1),
        Metric("seconds", "run time (s)", _same, 0),
        Metric("peak_memory_bytes", "peak memory (MiB)", _mebi, 0),
    )
}
