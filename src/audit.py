"""`python -m src.audit TABLE.csv`: what cannot be true in a results table that somebody published."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from src.choices import Parser, check_choice
from src.networks.table import Network, Norm, Stage, Stem
from src.record import write_atomically
from src.report.console import make_console
from src.report.published import markdown, render, to_mapping
from src.verdict.printed import dataset_facts, read_table
from src.verdict.published import audit

if TYPE_CHECKING:
    from src.scaling.stated import Twin

CONF = Path(__file__).resolve().parent.parent / "conf"
CLASSES = (10, 100, 200, 1000)  # tried where nothing states them

HELP = """\
Reads a table as CSV, one row an arm, and holds it against what the networks must have cost, counted by this project's
cost twins. Nothing is trained or downloaded. Any column may be missing; what then cannot be checked is said.

  arm               name; says what is scaled: base, depth, width, resolution, compound
  params            "Params (M)", "#params"; 4.02M, 4020358
  macs or flops     "FLOPs (G)", "MACs (M)", "MMac"; 0.82B, 408.93 MMac
  px                input side: 224, 224px, 224x224
  accuracy          "top-1", "Test acc (%)"; 93.82 %, 0.9382
  n_test, seeds     pictures of the test set; runs an arm. sd: standard deviation of the accuracy over them
  depth, width, r   stated factors; r is one of resolution, where px is not known
  dataset, classes, base, network
                    cifar10, ...; base: yes in the row that the others were scaled from; network: what was scaled

Lines that start with # are comments. A number without a unit, or one that can be read in two ways, is asked about.

Checks: networks that were not scaled (G1), units and costs that no network has (G2), unmatched budgets (G3), selection
(G4), pixels mixed into other arms (G9), noise, seeds and accidental A/A pairs (G10), chance (G11), another network than
stated (G13), pixels beyond the data's (G14). Every finding is one of: cannot be true, does not follow, not stated; and
says how it was derived and what would settle it. docs/audit.md explains each.

Examples:
  python -m src.audit docs/published/blog.csv
  python -m src.audit docs/published/poster.csv --network efficientnet_b0 --classes 10
  python -m src.audit table.csv --markdown audit.md --json audit.json

Exit code: 0 when the table was audited, whatever was found; 2 for a mistake told in one sentence."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m src.audit",
        description="Say what cannot be true in a results table that somebody published.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="the table, for example docs/published/blog.csv")
    parser.add_argument(
        "--network", metavar="NAME", help="what was scaled, one of conf/network; default: whichever fits the base row"
    )
    parser.add_argument("--classes", type=int, metavar="K", help="outputs of the classifier; default: the data set's")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the audit there too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same for programs")
    try:
        given = parser.parse_args(arguments)
        table = read_table(_text(given.path), released())
        stated = {arm.network for arm in table.arms if arm.network is not None}
        network = given.network or (stated.pop() if len(stated) == 1 else None)
        facts = dataset_facts(table)
        twins = load_twins(network, given.classes or table.classes or (facts[0] if facts else None))
        found = audit(table, twins, named=network is not None)
        for path in (given.markdown, given.json):
            if path is not None and path.resolve() == given.path.resolve():
                raise ValueError(f"{path} is the table itself; write the audit to another file")
        if given.markdown is not None:
            write_atomically(given.markdown, markdown(found, given.path.name))
        if given.json is not None:
            write_atomically(given.json, json.dumps(to_mapping(found), indent=1, ensure_ascii=False) + "\n")
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    render(found, make_console())
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8; save the table as CSV") from None


def load_twins(network: str | None, classes: int | None) -> list[Twin]:
    """Baselines to try: one network or all of `conf/network`, with these classes or the usual numbers of them.

    Raises:
        ValueError: there is no such network, or a number of classes that cannot be.
    """
    from src.scaling.lattice import Base  # torch comes with the twins: --help and a mistake in a table need none
    from src.scaling.stated import Twin

    shipped = sorted(path.stem for path in (CONF / "network").glob("*.yaml"))
    if network is not None:
        check_choice("--network", network, shipped)
    if classes is not None and not 2 <= classes <= 1_000_000:
        raise ValueError(f"--classes={classes} must be at least 2 and at most 1000000")
    names = shipped if network is None else [network]
    numbers = CLASSES if classes is None else (classes,)
    return [Twin(Base(_network(name), number)) for number in numbers for name in names]


def _network(name: str) -> Network:
    keys = _keys(CONF / "network" / f"{name}.yaml")
    parts = {"stem": Stem(**keys["stem"]), "norm": Norm(**keys["norm"])}
    return Network(**{**keys, **parts, "stages": tuple(Stage(**stage) for stage in keys["stages"])})


def released() -> dict[str, tuple[float, float, int]]:
    """Factors of depth and width, and input side, of the published tables of `conf/scaling`, by name."""
    rules = {path.stem: _keys(path) for path in sorted((CONF / "scaling").glob("*.yaml"))}
    return {
        name: (float(keys.get("depth", 1.0)), float(keys.get("width", 1.0)), int(keys["pixels"]))
        for name, keys in rules.items()
        if keys.get("network") and keys.get("pixels")
    }


def _keys(path: Path) -> Mapping[str, Any]:
    keys = yaml.safe_load(path.read_text())
    assert isinstance(keys, dict)
    return keys


if __name__ == "__main__":
    sys.exit(main())
