"""A results table as somebody printed it: headings and units as people write them, numbers with the digits they have.

What can be read in two ways is asked about, not guessed. Nothing is judged here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T", int, str)


class Kind(StrEnum):
    """What somebody else's row says that it scales. No word of this project's rules: those are data."""

    BASE = "base"
    DEPTH = "depth"
    WIDTH = "width"
    RESOLUTION = "resolution"
    COMPOUND = "compound"


DATASETS: dict[str, tuple[int, int, int | None]] = {  # classes, test pictures, native pixels (None: they vary)
    "cifar10": (10, 10_000, 32),
    "cifar100": (100, 10_000, 32),
    "tinyimagenet": (200, 10_000, 64),
    "imagenet": (1000, 50_000, None),
}
GROWING = (Kind.DEPTH, Kind.WIDTH, Kind.COMPOUND)  # kinds whose parameters must grow


@dataclass(frozen=True)
class Printed:
    """A number with what its last digit allows, in the unit that was read: parameters, multiply-adds or "FLOPs" as
    printed, a share in [0, 1]."""

    value: float
    half: float  # half a unit of the last printed digit

    @property
    def low(self) -> float:
        """Smallest number that is printed so."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """Largest number that is printed so."""
        return self.value + self.half

    def equals(self, other: Printed) -> bool:
        """Whether both may be roundings of one number."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Arm:
    """One row. `kind`: read from the name; None: the name does not say. depth, width, resolution: stated
    factors. sd: of accuracy over seeds, a share in [0, 1]."""

    name: str
    kind: Kind | None = None
    params: Printed | None = None
    cost: Printed | None = None
    px: int | None = None
    accuracy: Printed | None = None
    n_test: int | None = None
    seeds: int | None = None
    sd: Printed | None = None
    depth: Printed | None = None
    width: Printed | None = None
    resolution: Printed | None = None
    network: str | None = None

    @property
    def factors(self) -> bool:
        """Whether a factor of depth or width is stated."""
        return self.depth is not None or self.width is not None


@dataclass(frozen=True)
class Table:
    """The rows, the base first and then by name.

    headings: as printed, by column. counts_macs: the cost column says MACs; False: FLOPs or the like. unread: headings
    that are none of the known ones.
    """

    arms: tuple[Arm, ...]
    base: str | None
    headings: Mapping[str, str]
    counts_macs: bool
    classes: int | None = None
    dataset: str | None = None
    unread: tuple[str, ...] = ()

    @property
    def base_arm(self) -> Arm | None:
        """The row that the others were scaled from, if one is known."""
        return next((arm for arm in self.arms if arm.name == self.base), None)


_COLUMNS: dict[str, tuple[str, ...]] = {  # words of a heading, without its unit; the first column that fits is taken
    "base": ("base", "isbase", "baseline", "isbaseline"),
    "arm": ("arm", "model", "method", "name", "variant", "scaling", "configuration", "config", "row"),
    "params": ("params", "param", "parameters", "parameter", "nparams", "weights"),
    "cost": ("macs", "mac", "madds", "multadds", "multiplyadds", "flops", "flop", "compute"),
    "n_test": ("ntest", "testimages", "testpictures", "testsize", "testset", "nimages"),
    "seeds": ("seeds", "nseeds", "runs", "nruns", "numseeds"),
    "sd": ("sd", "std", "stdev", "accuracysd", "accuracystd", "accsd", "accstd", "top1sd", "top1std"),
    "px": ("px", "pixels", "resolution", "res", "inputsize", "imagesize", "imgsize", "input", "inputpx"),
    "depth": ("depth", "d", "depthfactor", "depthcoefficient"),
    "width": ("width", "w", "widthfactor", "widthcoefficient"),
    "resolution": ("r", "resolutionfactor", "resolutioncoefficient"),
    "classes": ("classes", "nclasses", "numclasses"),
    "dataset": ("dataset", "data"),
    "network": ("network", "backbone", "architecture", "arch"),
    "accuracy": ("accuracy", "acc", "top1", "top1accuracy", "top1acc"),
}
_PREFIXES = ("our", "ours", "of", "test", "val", "validation", "number", "no", "total", "the", "n", "final", "mean")
_SUFFIXES = ("best", "max", "maximum", "highest", "last", "mean", "count", "of")
_MACS_WORDS = ("mac", "macs", "madds", "multadds", "multiplyadds")
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_COUNTED = r"(?:macs?|flops?|madds?|params?|parameters|ops)?"
_UNIT = re.compile(rf"(kilo|mega|million|giga|billion|tera|[kmgbt])?[ _-]*({_COUNTED})(?:/s)?", re.IGNORECASE)
_WORDS = {"kilo": "k", "mega": "m", "million": "m", "giga": "g", "billion": "b", "tera": "t"}
_NOTHING = ("", "-", "\N{EN DASH}", "\N{EM DASH}", "?", "n/a", "na", "none", "null")
_TIMES = "x\N{MULTIPLICATION SIGN}"
_TRUE, _FALSE = ("1", "yes", "true", "y", "x"), ("0", "no", "false", "n")
_LARGEST = 1e18  # of any count: beyond it a number is a slip

_KIND_WORDS = {
    Kind.DEPTH: ("depth", "deep", "deeper", "layers"),
    Kind.WIDTH: ("width", "wide", "wider", "channels"),
    Kind.RESOLUTION: ("resolution", "res", "sharp", "sharper", "pixels", "px"),
    Kind.COMPOUND: ("compound", "combined", "both", "all", "mixed", "uniform", "fast", "slow", "dw", "dr", "wr", "dwr"),
    Kind.BASE: ("base", "baseline", "original", "stock", "unscaled", "b0"),
}


def kind_of(name: str) -> Kind | None:
    """What a row's name says it scales; several axes are compound, and an axis beats the name of the base."""
    words = set(re.findall(r"[a-z]+\d*", name.lower()))
    found = [kind for kind, known in _KIND_WORDS.items() if words & set(known)]
    axes = [kind for kind in found if kind is not Kind.BASE]
    if Kind.COMPOUND in axes or len(axes) > 1:
        return Kind.COMPOUND
    return axes[0] if axes else (Kind.BASE if found else None)


def read_table(text: str, released: Mapping[str, tuple[float, float, int]] | None = None) -> Table:
    """Read a table from CSV; lines that start with # are comments.

    Args:
        text: comma, semicolon, tab or bar between cells.
        released: factors of depth and width, and input side, of networks that a row may be named after, such as b1;
            they stand in where a row states none.

    Raises:
        ValueError: no arm column, no rows, two columns for one thing, an ambiguous unit, or a number that cannot be.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ValueError("the table is empty; give a line of headings and a line for every arm")
    delimiter = max(",;\t|", key=lines[0].count)
    try:
        rows = [
            [cell.strip() for cell in row] for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
        ]
    except csv.Error as error:
        raise ValueError(f"the table is no CSV: {error}") from None
    headings, rows = rows[0], [row for row in rows[1:] if any(row)]
    columns, unread = _columns(headings)
    if "arm" not in columns:
        raise ValueError(f"no column names the arms; call one of {', '.join(map(repr, headings))} arm or model")
    if not rows:
        raise ValueError("the table has headings and no rows; give a line for every arm")
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(
                f"the line of {row[0]!r} has {len(row)} cells and the headings {len(headings)}; quote cells that hold"
                f" {delimiter!r}, and leave what is unknown empty"
            )
    cells = {column: [row[index] for row in rows] for column, index in columns.items()}
    named = {column: headings[index] for column, index in columns.items()}
    names = cells["arm"]
    _check_names(names)
    arms = _arms(names, cells, named, released or {})
    counts_macs = "cost" in named and _says_macs(named["cost"], cells["cost"])
    base = _base(arms, cells.get("base"))
    return Table(
        tuple(sorted(arms, key=lambda arm: (arm.name != base, arm.name))),
        base,
        named,
        counts_macs,
        _common("classes", [_whole("classes", n, c) for n, c in zip(names, cells.get("classes", []), strict=False)]),
        _common("dataset", [c.lower() if c.lower() not in _NOTHING else None for c in cells.get("dataset", [])]),
        unread,
    )


def _columns(headings: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Index of each known column, and the headings that are none. A "paper" column is somebody else's numbers."""
    found: dict[str, int] = {}
    unread = []
    for index, heading in enumerate(headings):
        column = _column(heading)
        if column is None:
            unread.append(heading)
        elif column in found:
            raise ValueError(
                f"{headings[found[column]]!r} and {heading!r} both look like {column}; keep one, or rename the other"
            )
        else:
            found[column] = index
    if "arm" not in found and "network" in found:
        found["arm"] = found.pop("network")
    return found, tuple(unread)


def _column(heading: str) -> str | None:
    words = re.findall(r"[a-z0-9]+", re.sub(r"[(\[].*?[)\]]", " ", heading.lower().replace("#", " ")))
    if "paper" in words or "loss" in words:
        return None
    words = [re.sub(r"^[kmgt](?=(flops?|macs?|madds)$)", "", word) for word in words]
    while len(words) > 1 and words[0] in _PREFIXES and not _known("".join(words)):
        words = words[1:]
    while len(words) > 1 and (words[-1] in _SUFFIXES or words[-1] in _SCALES) and not _known("".join(words)):
        words = words[:-1]
    return _known("".join(words))


def _known(word: str) -> str | None:
    return next((column for column, spellings in _COLUMNS.items() if word in spellings), None)


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if not name:
            raise ValueError("a row has no name; name every arm, such as base, depth, width, compound")
        if names.count(name) > 1:
            raise ValueError(
                f"the arm {name!r} stands in {names.count(name)} rows; give one row an arm: its mean, the number of"
                " seeds in a column seeds and their standard deviation in a column sd"
            )


def _arms(
    names: Sequence[str],
    cells: Mapping[str, Sequence[str]],
    named: Mapping[str, str],
    released: Mapping[str, tuple[float, float, int]],
) -> list[Arm]:
    percent = _percent(cells.get("accuracy", []), named.get("accuracy", ""), names)
    found = []
    for index, name in enumerate(names):
        at = {column: values[index] for column, values in cells.items()}
        arm = Arm(
            name,
            kind_of(name),
            _count("params", name, at.get("params", ""), named.get("params", "")),
            _count("cost", name, at.get("cost", ""), named.get("cost", "")),
            _side(name, at.get("px", "")),
            _share("accuracy", name, at.get("accuracy", ""), percent),
            _whole("n_test", name, at.get("n_test", "")),
            _whole("seeds", name, at.get("seeds", "")),
            _share("sd", name, at.get("sd", ""), percent),
            _factor("depth", name, at.get("depth", "")),
            _factor("width", name, at.get("width", "")),
            _factor("resolution", name, at.get("resolution", "")),
            at.get("network", "").lower() or None,
        )
        found.append(_as_released(arm, released))
    return found


def _as_released(arm: Arm, released: Mapping[str, tuple[float, float, int]]) -> Arm:
    """A row that is called by a released network's name alone states that network's factors and input side."""
    if arm.kind is not None or arm.factors:
        return arm
    words = [word for word in re.findall(r"[a-z0-9_]+", arm.name.lower()) if word in released]
    if len(words) != 1:
        return arm
    depth, width, px = released[words[0]]
    stated = {"depth": Printed(depth, 0.0), "width": Printed(width, 0.0), "px": px if arm.px is None else arm.px}
    return Arm(**{**vars(arm), **stated})


def _base(arms: Sequence[Arm], flags: Sequence[str] | None) -> str | None:
    if flags is not None:
        for arm, flag in zip(arms, flags, strict=True):
            if flag.lower() not in (*_TRUE, *_FALSE, *_NOTHING):
                raise ValueError(f"base={flag!r} of {arm.name!r} is neither yes nor no")
        marked = [arm.name for arm, flag in zip(arms, flags, strict=True) if flag.lower() in _TRUE]
        if len(marked) > 1:
            raise ValueError(f"{_and(marked)} are all marked as base; mark the one that the others were scaled from")
        if marked:
            return marked[0]
    named = [arm.name for arm in arms if arm.kind is Kind.BASE]
    if len(named) > 1:
        raise ValueError(f"{_and(named)} all sound like the base; mark one in a column base with yes")
    return named[0] if named else None


def _decimal(column: str, name: str, text: str) -> tuple[float, float]:
    """The number and half a unit of its last digit."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    elif "," in text:
        raise ValueError(f"{column} of {name!r} is {text!r}: write a decimal point, or thousands in groups of three")
    try:
        number = Decimal(text.replace(" ", "").replace("_", ""))
    except InvalidOperation:
        raise ValueError(f"{column} of {name!r} is {text!r}, which is no number") from None
    if not number.is_finite():
        raise ValueError(f"{column} of {name!r} is {text!r}, which is no finite number")
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    if abs(number) > Decimal(_LARGEST) or exponent < -30:
        raise ValueError(f"{column} of {name!r} is {text!r}, which no network has; check the unit")
    return float(number), 0.5 * 10.0**exponent if "." in text or "e" in text.lower() else 0.5


def _split(column: str, name: str, cell: str) -> tuple[float, float, str] | None:
    """Number, half a unit of its last digit, and what follows it; None for an empty cell."""
    if cell.strip().lower() in _NOTHING:
        return None
    if re.search(r"±|\+/-|\+-", cell):
        raise ValueError(
            f"{column} of {name!r} is {cell!r}: what stands after the sign may be a standard deviation, a standard"
            " error or an interval; put the standard deviation over seeds into a column sd"
        )
    match = re.fullmatch(r"([-+]?[\d.,_]+(?: \d{3})*(?:e[-+]?\d+)?)\s*(.*)", cell.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{column} of {name!r} is {cell!r}, which is no number")
    number, half = _decimal(column, name, match[1])
    return number, half, match[2]


def _scale(text: str) -> tuple[float | None, bool] | None:
    """Scale of a unit such as "MMac", "B" or "(G)", None where it names none; and whether it says MACs. None: it is no
    unit of a count."""
    match = _UNIT.fullmatch(text.strip())
    if match is None:
        return None
    prefix = (match[1] or "").lower()
    prefix = _WORDS.get(prefix, prefix)
    return _SCALES[prefix] if prefix else None, match[2].lower() in _MACS_WORDS


def _heading_scale(column: str, heading: str) -> float | None:
    """Scale that a heading names: "FLOPs (G)", "params_m", "GFLOPs"."""
    inside = re.findall(r"[(\[](.*?)[)\]]", heading)
    outside = re.sub(r"[(\[].*?[)\]]", " ", heading)
    words = re.findall(r"[A-Za-z]+", outside)
    candidates = [*inside, *(word for word in words if re.fullmatch(r"(?i)[kmgt](flops?|macs?|madds)", word))]
    candidates += words[-1:] if len(words) > 1 and words[-1].lower() in _SCALES else []
    scales = {unit[0] for unit in map(_scale, candidates) if unit is not None and unit[0] is not None}
    if len(scales) > 1:
        raise ValueError(f"the heading {heading!r} names two units of {column}; keep one")
    return scales.pop() if scales else None


def _count(column: str, name: str, cell: str, heading: str) -> Printed | None:
    """Parameters or cost."""
    split = _split(heading or column, name, cell)
    if split is None:
        return None
    number, half, rest = split
    unit = _scale(rest)
    if unit is None:
        raise ValueError(f"{heading!r} of {name!r} is {cell!r}: {rest!r} is no unit of a count; write K, M, G or B")
    above = _heading_scale(column, heading)
    if unit[0] is not None and above is not None and unit[0] != above:
        raise ValueError(
            f"{heading!r} of {name!r} is {cell!r}: the heading and the cell name different units; keep one"
        )
    scale = unit[0] if unit[0] is not None else above
    if scale is None:
        if number < 1e4 or number != int(number):
            example = "4.02M" if column == "params" else "0.39G"
            raise ValueError(
                f"{heading!r} of {name!r} is {cell!r} without a unit; is it thousands, millions or billions? write it"
                f" such as {example}, or in the heading, such as {heading.strip()} (M)"
            )
        scale = 1.0
    if number <= 0:
        raise ValueError(f"{heading!r} of {name!r} is {cell!r}; it must be positive")
    return Printed(number * scale, half * scale)


def _says_macs(heading: str, cells: Iterable[str]) -> bool:
    """Whether a column of cost says that it counts multiply-adds, in its heading or in its cells."""
    words = re.findall(r"[a-z]+", heading.lower())
    words += [word for cell in cells for word in re.findall(r"[a-z]+", cell.lower())]
    return any(re.sub(r"^[kmgtb](?=mac|madd)", "", word) in _MACS_WORDS for word in words)


def _percent(cells: Sequence[str], heading: str, names: Sequence[str]) -> bool:
    """Whether accuracies are printed in percent."""
    if "%" in heading or "percent" in heading.lower() or any("%" in cell for cell in cells):
        return True
    numbers = [
        split[0]
        for name, cell in zip(names, cells, strict=False)
        if (split := _split("accuracy", name, cell)) is not None
    ]
    if numbers and min(numbers) <= 1.0 < max(numbers):
        raise ValueError(
            f"{heading!r} runs from {min(numbers):g} to {max(numbers):g}: shares or percent? write % behind the"
            f" numbers, or in the heading, such as {heading} (%)"
        )
    return bool(numbers) and min(numbers) > 1.0


def _share(column: str, name: str, cell: str, percent: bool) -> Printed | None:
    split = _split(column, name, cell)
    if split is None:
        return None
    number, half, rest = split
    if rest not in ("", "%", "pp"):
        raise ValueError(f"{column} of {name!r} is {cell!r}: {rest!r} is no unit of it; write percent or a share")
    scale = 0.01 if percent else 1.0
    if not 0.0 <= number * scale <= 1.0:
        raise ValueError(f"{column} of {name!r} is {cell!r}; it must lie between 0 and {100 if percent else 1}")
    return Printed(number * scale, half * scale)


def _side(name: str, cell: str) -> int | None:
    match = re.fullmatch(rf"(\d+)\s*[{_TIMES}]\s*(\d+)(?:\s*px)?", cell.strip(), re.IGNORECASE)
    if match and match[1] != match[2]:
        raise ValueError(f"px of {name!r} is {cell!r}; only square pictures can be audited")
    text = match[1] if match else re.sub(r"\s*(px|pixels)$", "", cell.strip(), flags=re.IGNORECASE)
    side = _whole("px", name, text)
    if side is not None and not 8 <= side <= 8192:
        raise ValueError(f"px of {name!r} is {cell!r}; it must lie in 8 to 8192, a factor belongs into a column r")
    return side


def _whole(column: str, name: str, cell: str) -> int | None:
    split = _split(column, name, cell)
    if split is None:
        return None
    number, _, rest = split
    scale = _scale(rest)
    if scale is None or number * (scale[0] or 1.0) < 1 or not float(number * (scale[0] or 1.0)).is_integer():
        raise ValueError(f"{column} of {name!r} is {cell!r}; it must be a whole number of at least 1")
    return int(number * (scale[0] or 1.0))


def _factor(axis: str, name: str, cell: str) -> Printed | None:
    split = _split(axis, name, re.sub(rf"^[{_TIMES}]\s*|\s*[{_TIMES}]$", "", cell.strip(), flags=re.IGNORECASE))
    if split is None:
        return None
    number, half, rest = split
    if rest or not 0.0 < number <= 1000.0:
        raise ValueError(f"{axis} of {name!r} is {cell!r}; it must be a positive multiple of the base, such as 1.2")
    return Printed(number, 0.0 if number == 1.0 else min(half, 0.01 * number))


def _common(column: str, values: Iterable[T | None]) -> T | None:
    found = sorted({value for value in values if value is not None}, key=str)
    if len(found) > 1:
        raise ValueError(f"the column {column} holds {_and([str(v) for v in found])}; audit one of them at a time")
    return found[0] if found else None


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def dataset_facts(table: Table) -> tuple[int, int, int | None] | None:
    """Classes, test pictures and native pixels of the table's data set, if it is a known one."""
    return DATASETS.get(re.sub(r"[^a-z0-9]", "", table.dataset or ""))


def is_selected(heading: str) -> bool:
    """Whether a heading of accuracy says that the best of several was printed."""
    return bool(re.search(r"\b(best|max|maximum|highest|peak)\b", heading, re.IGNORECASE))
