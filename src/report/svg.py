"""Figures as SVG: as files of their own, and inside a page, where its style sheet and its script reach every mark.

A figure is drawn with plain colours. Inside a page each of them becomes a variable of the style sheet, so that one
drawing serves light, dark and print, and each mark says which runs it stands for.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

BASE_COLOUR = "#4d4d4d"
ARM_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00")  # Okabe & Ito; olive
GREY, AXIS_GREY, GRID_GREY = "#666666", "#999999", "#e6e6e6"

# Names of the variables in page.css.
VARIABLES = {
    "#ffffff": "paper",
    "#000000": "ink",
    GREY: "soft",
    AXIS_GREY: "axis",
    GRID_GREY: "grid",
    BASE_COLOUR: "arm-base",
    **{colour.lower(): f"arm-{number}" for number, colour in enumerate(ARM_COLOURS)},
}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_LONG = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"#([\w.-]+)")
_NO_TURN = re.compile(r"rotate\(-?0 ")


@dataclass(frozen=True)
class Mark:
    """What a part of a figure stands for."""

    arm: int  # place of the arm's name in the figure's styles
    runs: tuple[int, ...] = ()  # places in the list of all runs; empty: the part only belongs to the arm
    field: str = ""  # the metric that it shows
    label: str = ""  # what it says, in words


@dataclass
class Plot:
    """A figure, and what its marks stand for by their ids."""

    figure: Figure
    marks: dict[str, Mark] = field(default_factory=dict)

    def mark(self, arm: int, runs: tuple[int, ...] = (), field: str = "", label: str = "") -> str:
        """A new id for a part of the figure."""
        name = f"mark-{len(self.marks)}"
        self.marks[name] = Mark(arm, runs, field, label)
        return name


@contextlib.contextmanager
def drawing(name: str) -> Iterator[None]:
    """Within it, figures are built and saved: the same figure gives the same bytes, and names with `$` stay names.

    Args:
        name: of the figure, unique among those of one page, where ids of two figures must not meet.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        yield


def as_svg(figure: Figure, transparent: bool = False) -> str:
    """The figure as an SVG file; texts stay texts."""
    buffer = io.StringIO()
    facecolor = "none" if transparent else "auto"
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor=facecolor)
    return buffer.getvalue()


def inline(plot: Plot, label: str, kind: str = "") -> str:
    """The figure as an element of an HTML page, without ids of its own beside those that it refers to.

    Args:
        plot: the figure and its marks.
        label: what a screen reader says of it.
        kind: further class of the element.
    """
    root = ElementTree.fromstring(as_svg(plot.figure, transparent=True))
    for parent in root.iter():
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):  # a style in here would reach the whole page
                parent.remove(child)
    used = {
        name
        for element in root.iter()
        for key, value in element.attrib.items()
        if key.endswith("href") or key == "clip-path"
        for name in _REFERENCE.findall(value)
    }
    for element in root.iter():
        _plain(element, used, plot.marks)
    root.attrib = {
        "class": f"plot {kind}".strip(),
        "viewBox": root.attrib["viewBox"],
        "role": "group",
        "aria-label": label,
    }
    return ElementTree.tostring(root, encoding="unicode")


def variable(colour: str) -> str:
    """Name of the style sheet's variable for a colour that figures use."""
    return VARIABLES[colour.lower()]


def _plain(element: ElementTree.Element, used: set[str], marks: dict[str, Mark]) -> None:
    """Rewrite one element in place: no namespaces, short numbers, the page's font and colours, its mark's data."""
    element.tag = element.tag.rpartition("}")[2]
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    if element.tag != "text":
        element.text = None
    element.tail = None
    name = attributes.pop("id", "")
    if name in used:
        attributes["id"] = name
    if name in marks:
        attributes |= _data(marks[name])
    if _NO_TURN.match(attributes.get("transform", "")):
        del attributes["transform"]
    for key in ("d", "x", "y", "width", "height"):
        if key in attributes:
            short = _LONG.sub(lambda found: f"{float(found[0]):.2f}", attributes[key])
            attributes[key] = " ".join(short.split())
    if "style" in attributes:
        kept = (part.strip() for part in attributes["style"].split(";"))
        suffix = "-text" if element.tag == "text" else ""
        style = "; ".join(part for part in kept if not part.startswith("font-family"))
        attributes["style"] = _COLOUR.sub(lambda found: _themed(found[0], suffix), style)
    element.attrib = attributes


def _data(mark: Mark) -> dict[str, str]:
    if not mark.runs:
        return {"data-arm": str(mark.arm)}
    return {
        "class": "trace mark",
        "data-arm": str(mark.arm),
        "data-runs": " ".join(map(str, mark.runs)),
        "data-field": mark.field,
        "role": "button",
        "tabindex": "-1",
        "aria-label": mark.label,
    }


def _themed(colour: str, suffix: str) -> str:
    name = VARIABLES.get(colour)
    if name is None:
        return colour
    return f"var(--{name}{suffix if name.startswith('arm-') else ''})"
