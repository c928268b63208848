"""An independent reader of W&B's offline log: a LevelDB log of protocol-buffer records, truncated tails tolerated."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024


@dataclass
class LoggedRun:
    """What one `.wandb` file says. `exit_code` is None for a run that never ended."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None

    def keys(self, key: str) -> list[Any]:
        return [row[key] for row in self.rows if key in row]


def records(path: Path) -> Iterator[Any]:
    data, position, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + 7 : position + 7 + length]
        if len(chunk) < length or kind not in (1, 2, 3, 4):
            return
        position += 7 + length
        parts = chunk if kind in (1, 2) else parts + chunk
        if kind in (1, 4):
            yield Record.FromString(parts)


def items(entries: Any) -> dict[str, Any]:
    return {e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in entries}


def read(path: Path) -> LoggedRun:
    logged = LoggedRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            logged.run = record.run
            logged.config.update(items(record.run.config.update))
        elif kind == "config":
            logged.config.update(items(record.config.update))
        elif kind == "history":
            logged.rows.append(items(record.history.item))
        elif kind == "summary":
            logged.summary.update(items(record.summary.update))
        elif kind == "metric":
            logged.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            logged.exit_code = record.exit.exit_code
    return logged


def read_all(study: Path, seconds: float = 10.0) -> dict[str, LoggedRun]:
    """Runs of one study by name; W&B's service closes a file shortly after `finish`, so wait for that."""
    deadline = time.monotonic() + seconds
    while True:
        found = [read(path) for path in sorted((study / "wandb").glob("*run-*/run-*.wandb"))]
        if all(logged.exit_code is not None for logged in found) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    named = {logged.run.display_name: logged for logged in found}
    assert len(named) == len(found), "two runs of one name"
    return named
