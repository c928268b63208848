"""The documents say what the tool says: every shown run of `explain` is run again, every relative link is followed.

A shown run is a fenced block that begins with `$ python -m src.explain ...`. It holds the whole output, or whole
sections of it with `[...]` where some are left out. `python tests/test_docs.py` rewrites all shown runs.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path
from unittest import mock

import pytest

from src.explain import main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = "$ python -m src.explain"
LEFT_OUT = "[...]"
SECTIONS = ("axis", "cost", "stage", "-")  # first words of the sections of one arm; what precedes them is the title

RUN = re.compile(rf"^```(?:text)?\n({re.escape(PROGRAM)}.*)\n((?:(?!```).*\n)*)```$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
SHOWN = [
    pytest.param(found[1], found[2], id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, found in enumerate(RUN.finditer(path.read_text()), 1)
]


def printed(command: str) -> str:
    """What a command prints into a pipe, without spaces at the ends of lines."""
    out = io.StringIO()
    arguments = shlex.split(command.removeprefix(PROGRAM))
    with (
        mock.patch.object(sys, "argv", ["explain", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        main()
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def sections(text: str) -> dict[str, str]:
    """Sections of an output by their first word."""
    parts: dict[str, str] = {}
    name = "title"
    for line in text.splitlines(keepends=True):
        first = line.split(" ", 1)[0].strip()
        name = first if first in SECTIONS else name
        parts[name] = parts.get(name, "") + line
    return parts


def as_shown(output: str, shown: str) -> str:
    """The output with the sections that a document leaves out replaced by one `[...]` each run of them."""
    if LEFT_OUT not in shown:
        return output
    kept = sections(shown.replace(f"{LEFT_OUT}\n", ""))
    parts = [text if name in kept else f"{LEFT_OUT}\n" for name, text in sections(output).items()]
    return re.sub(rf"(?:{re.escape(LEFT_OUT)}\n)+", f"{LEFT_OUT}\n", "".join(parts))


@pytest.mark.parametrize(("command", "shown"), SHOWN)
def test_a_shown_run_prints_what_is_shown(command: str, shown: str) -> None:
    assert as_shown(printed(command), shown) == shown


def test_documents_show_runs() -> None:
    assert len(SHOWN) >= 15
    assert sum(LEFT_OUT not in shown.values[1] for shown in SHOWN) >= 5


@pytest.mark.parametrize("shown", ["title\n[...]\n- b\n", "[...]\nstage 1\n"])
def test_sections_that_are_shown_are_compared(shown: str) -> None:
    output = "title\naxis a\ncost c\nstage 1\n2 row\n- a\n- b\n"
    assert as_shown(output, shown) != shown
    right = as_shown(output, shown)
    assert as_shown(output, right) == right


def anchors(path: Path) -> set[str]:
    """Names by which headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    broken = []
    for link in LINK.findall(FENCED.sub("", path.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_documents_link_to_each_other() -> None:
    links = [link for path in DOCUMENTS for link in LINK.findall(path.read_text())]
    assert any(not link.startswith("http") for link in links)


def rewrite() -> None:
    """Put what the tool prints now into every document."""
    for path in DOCUMENTS:
        old = path.read_text()
        new = RUN.sub(lambda found: f"```\n{found[1]}\n{as_shown(printed(found[1]), found[2])}```", old)
        if new != old:
            path.write_text(new)


if __name__ == "__main__":
    rewrite()
