"""The audit of somebody else's table, for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from src.report.console import print_whole
from src.report.table import escape
from src.verdict.findings import Certainty, Finding, Severity
from src.verdict.fit import Reading
from src.verdict.published import Audit

_COLOUR = {Severity.FAULT: "red", Severity.DOUBT: "yellow", Severity.NOTE: "dim"}


def _millions(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:,.2f}"


def _unit(reading: Reading) -> str:
    if reading.unit is None or reading.arm.cost is None:
        return ""
    return f"{reading.unit:g} x MACs" + ("" if reading.units else " ?")


_COLUMNS: dict[str, Callable[[Reading], str]] = {
    "arm": lambda r: r.arm.name,
    "px": lambda r: "" if r.px is None else str(r.px),
    "cost printed (M)": lambda r: _millions(r.arm.cost.value if r.arm.cost else None),
    "read as": _unit,
    "MACs by twin (M)": lambda r: _millions(r.counted),
    "base's counter would print (M)": lambda r: _millions(r.predicted.value if r.predicted else None),
    "params printed (M)": lambda r: _millions(r.arm.params.value if r.arm.params else None),
    "params by twin (M)": lambda r: _millions(float(r.costs.params[0]) if r.costs is not None else None),
    "built, as printed": lambda r: "unscaled" if r.unscaled else "",
    "accuracy (%)": lambda r: f"{100 * r.arm.accuracy.value:.2f}" if r.arm.accuracy else "",
    "seeds": lambda r: "" if r.arm.seeds is None else str(r.arm.seeds),
}


def _shown(audit: Audit) -> dict[str, list[str]]:
    """Columns that hold anything, with the cells of every row."""
    columns = {label: [show(reading) for reading in audit.readings] for label, show in _COLUMNS.items()}
    return {label: cells for label, cells in columns.items() if any(cells)}


def summary(audit: Audit) -> str:
    """One sentence: how much of the table stands."""
    counts = {c: sum(f.certainty is c and f.accuses for f in audit.findings) for c in Certainty}
    if not any(counts.values()):
        return "Nothing in this table is accused of anything."
    listed = ", ".join(f"{count} {certainty}" for certainty, count in counts.items() if count)
    return f"Findings: {listed}."


def render(audit: Audit, console: Console) -> None:
    """Print the rows beside their twins, then every finding with how it was derived and what would settle it."""
    console.print(Text(f"Read as {audit.fit or 'no network that was tried'}", style="bold"))
    console.print()
    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = _shown(audit)
    for label in columns:
        grid.add_column(label, justify="left" if label == "arm" else "right", header_style="dim", vertical="bottom")
    for cells in zip(*columns.values(), strict=True):
        grid.add_row(*map(Text, cells))
    print_whole(console, grid)
    for finding in audit.findings:
        console.print()
        arms = "all rows" if len(finding.arms) == len(audit.readings) else ", ".join(finding.arms)
        head = Text(f"{finding.certainty} ", style=f"bold {_COLOUR[finding.severity]}")
        head.append(f"({finding.guard}, {finding.severity})  {arms}", style="dim")
        console.print(head, soft_wrap=True)
        _paragraph(console, finding.text)
        for label, text in _lines(finding):
            _paragraph(console, f"{label}: {text}", "dim")
    if audit.unchecked:
        console.print()
        console.print(Text("Not checked", style="bold"))
        for text in audit.unchecked:
            _paragraph(console, text)
    console.print()
    console.print(Text(summary(audit), style="bold"))


def _paragraph(console: Console, text: str, style: str = "") -> None:
    """Indented lines without spaces at their ends."""
    wrapped = textwrap.fill(text, console.width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    console.print(Text(wrapped, style=style))


def _lines(finding: Finding) -> tuple[tuple[str, str], ...]:
    return ("derived", finding.derivation), ("would settle it", finding.settle)


def markdown(audit: Audit, title: str) -> str:
    """The whole audit as Markdown."""
    columns = _shown(audit)
    lines = [f"# Audit of {escape(title)}", "", f"Read as {audit.fit or 'no network that was tried'}.", ""]
    lines += ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(map(escape, cells)) + " |" for cells in zip(*columns.values(), strict=True)]
    for finding in audit.findings:
        lines += [
            "",
            f"**{finding.certainty}** ({finding.guard}, {finding.severity}: {', '.join(finding.arms)}). {finding.text}",
        ]
        lines += ["", *(f"- *{label}*: {text}" for label, text in _lines(finding))]
    if audit.unchecked:
        lines += ["", "**Not checked**", "", *(f"- {text}" for text in audit.unchecked)]
    return "\n".join([*lines, "", summary(audit), ""])


def to_mapping(audit: Audit) -> dict[str, Any]:
    """The whole audit for programs; costs in the printed unit, MACs and parameters in ones, accuracies as shares."""
    return {
        "read_as": audit.fit,
        "summary": summary(audit),
        "rows": [
            {
                "arm": r.arm.name,
                "kind": r.arm.kind,
                "px": r.px,
                "printed_cost": r.arm.cost.value if r.arm.cost else None,
                "unit": r.unit,
                "units_that_explain_it": list(r.units),
                "macs_as_printed": r.macs,
                "macs_by_twin": r.counted,
                "cost_by_the_bases_counter": r.predicted.value if r.predicted else None,
                "printed_params": r.arm.params.value if r.arm.params else None,
                "params_by_twin": float(r.costs.params[0]) if r.costs is not None else None,
                "unscaled": r.unscaled,
                "accuracy": r.arm.accuracy.value if r.arm.accuracy else None,
                "seeds": r.arm.seeds,
            }
            for r in audit.readings
        ],
        "findings": [{**dataclasses.asdict(finding), "accuses": finding.accuses} for finding in audit.findings],
        "unchecked": list(audit.unchecked),
    }
