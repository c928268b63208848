"""Random damage to commands, config files, state files and pictures: no traceback, whatever it is.

What is found here and put right gets a row in `test_bad_input.py`, where it stays without luck.
"""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.folder import decode
from tests.test_bad_input import ROOT, Printed, call

pytestmark = pytest.mark.slow

COMMANDS = (
    "scaling=compound seed=3 recipe.epochs=2",
    "-m scaling=base,depth budget=2,4 seed=range(2)",
    "+sweep=smoke seed=0",
    "scaling=custom scaling.exponents=[.2,.5,.3] network.stages.0.channels=8",
    "data=clutter data.clutter.train=100 tracking.tags=[a,b] +published.base=.4",
    "study=${data.name}-x tracking.notes='a b' launcher.timeout_minutes=null",
)
VALUES = (
    "null",
    "nan",
    "inf",
    "-1",
    "1e400",
    "''",
    "[1,2]",
    "{a:1}",
    "${x}",
    "???",
    "true",
    "ü",
    "x" * 300,
    "0",
    "1e-9",
)
BYTES = (b"\x00", b"\xff", b"\t", b"\n", b":", b"- ", b"${", b"[", b"{", b"#", b"'", b"\xe2\x82")
FILES = (
    "conf/recipe/quick.yaml",
    "conf/network/efficientnet_nano.yaml",
    "conf/scaling/depth.yaml",
    "sweeps/smoke.yaml",
)
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


def damage(content: bytes, rng: random.Random) -> bytes:
    """The same bytes with one to three places cut, repeated, overwritten or added to."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.randint(0, 12))
        new = rng.choice([b"", rng.choice(BYTES), bytes(data[start:stop]) * 2, rng.randbytes(3)])
        data[start:stop] = new
    return bytes(data)


def miswritten(line: str, rng: random.Random) -> list[str]:
    """A command with one word misspelt, dropped, doubled or given another value."""
    words = line.split(" ")
    which = rng.randrange(len(words))
    word = words[which]
    place = rng.randrange(len(word) + 1)
    key, _, value = word.partition("=")
    words[which : which + 1] = rng.choice(
        [
            [word[:place] + rng.choice("=,[]{}$+~@:'\"\\( 0é") + word[place:]],
            [word[:place] + word[place + 1 :]],
            [f"{key}={rng.choice(VALUES)}"],
            [f"{rng.choice('+~')}{word}"],
            [word, word],
            [f"{key}.x={value}"],
        ]
    )
    return words


def check(printed: Printed, what: object) -> None:
    """Either it was done, or one sentence says why not."""
    assert "Traceback" not in printed.err, (what, printed.err)
    assert printed.code in (0, 2), (what, printed)
    if printed.code == 2:
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, (what, printed.err)


@pytest.mark.parametrize("seed", range(60))
def test_commands(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    for line in COMMANDS:
        words = miswritten(line, rng)
        check(call("src.run", *words, "dry_run=true"), words)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("name", FILES)
def test_config_files(name: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("conf", "sweeps"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("src.command.ROOT", tmp_path)
    monkeypatch.setattr("src.study.CONF", tmp_path / "conf")
    content = damage((tmp_path / name).read_bytes(), random.Random(seed))
    (tmp_path / name).write_bytes(content)
    arguments = ("+sweep=smoke",) if name.startswith("sweeps") else ("scaling=depth",)
    check(call("src.run", *arguments, "dry_run=true"), content)


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    path = tmp_path / f"x.{kind.lower()}"
    for _ in range(400):
        path.write_bytes(damage(buffer.getvalue(), rng))
        try:
            picture = decode(path, 16)
        except ValueError as refused:
            assert str(path) in str(refused)
        else:
            assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
