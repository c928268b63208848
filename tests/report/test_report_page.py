"""The page of a study: what stands in it, what must not, and that it needs nothing but itself. No browser is needed."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from synthetic_study import arm_records, base_records, folder_name, record, write_arm, write_cam, write_status

from src.cam.panel import load_cam
from src.cam.score_file import GRIDS, SOURCES, ScoreFile
from src.cam.scores import MEASURES
from src.guards import GUARDS
from src.record import METRICS, RunRecord
from src.report import page as page_module
from src.report.cam_grid import GRID_NAMES
from src.report.figures import COSTS, cost_axes
from src.report.page import PAGE_FILE, RESULTS
from src.report.svg import ARM_COLOURS, BASE_COLOUR, VARIABLES
from src.report.write import FIGURES, SUMMARY_JSON, Report, write_report
from src.verdict.cells import group

ACCURACIES = {"compound": [0.921, 0.924, 0.9225], "depth": [0.901, 0.902, 0.9], "width": [0.91, 0.905, 0.908]}
VOID = {"meta", "img", "link", "br", "input"}
HOSTILE = '<script>alert("1")</script>&amp;\' $\\frac{'


class Page(HTMLParser):
    """A page taken apart: every element with its attributes, its own text and its parents' names."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text = text
        self.elements: list[dict] = []
        self.open: list[dict] = []
        self.feed(text)
        assert self.open == [], [e["tag"] for e in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "text": "", "within": [e["tag"] for e in self.open], **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append({"tag": tag, "text": "", "within": [e["tag"] for e in self.open], **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> ends {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def find(self, tag: str, **wanted: str) -> list[dict]:
        return [e for e in self.elements if e["tag"] == tag and all(e.get(k) == v for k, v in wanted.items())]

    def table(self, under: str) -> list[list[dict]]:
        """Cells of the body of the table in a section, by row; a cell's `button` is what it holds of provenance."""
        rows: list[list[dict]] = []
        section = ""
        for element in self.elements:
            if element["tag"] == "section":
                section = element.get("id", "")
            if section != under or "tbody" not in element["within"]:
                continue
            if element["tag"] == "tr":
                rows.append([])
            elif element["tag"] in ("td", "th"):
                rows[-1].append(element)
            elif element["tag"] == "button":
                rows[-1][-1]["button"] = element
        return rows

    def data(self) -> dict:
        [element] = self.find("script", type="application/json")
        return json.loads(element["text"])


def records(**changes: object) -> list[RunRecord]:
    costs = {"params": 6_100_000, "train_macs": 10**15, "seconds_per_epoch": 12.5, "peak_memory_bytes": 7 << 26}
    runs = [*arm_records(ACCURACIES, **costs), *base_records([0.89, 0.892, 0.888], **costs)]
    return [dataclasses.replace(r, **{"predictions_sha256": f"p{r.seed}" * 20, **changes}) for r in runs]


def opened(report: Report) -> Page:
    return Page((report.folder / PAGE_FILE).read_text(encoding="utf-8"))


def summary(report: Report) -> dict:
    return json.loads((report.folder / SUMMARY_JSON).read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Report:
    study = tmp_path_factory.mktemp("outputs") / "whole"
    for run in records():
        write_arm(study, run, cam=run.seed == 0)
    return write_report(study)


@pytest.fixture(scope="module")
def page(whole: Report) -> Page:
    return opened(whole)


def test_the_page_is_whole_and_says_the_verdict_first(whole: Report, page: Page) -> None:
    assert page.text.startswith("<!doctype html>")
    titles = [e["text"] for e in page.find("h2") if e["text"]]
    assert titles[0] == "Verdict" and titles.index("Results") > titles.index("Accuracy and cost") > 0
    assert {"What was asked, what was realised", "Learning curves", "Activation maps", "Guards"} < set(titles)
    said = [e["text"] for e in page.find("p") if e["within"][-1] == "li" and "Regime" in e["text"]]
    assert said == [sentence["text"] for sentence in summary(whole)["sentences"]]
    assert PAGE_FILE in {path.name for path in whole.files}
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched_and_one_script_alone_may_run(page: Page) -> None:
    [policy] = [e["content"] for e in page.find("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    script = next(e["text"] for e in page.find("script") if e.get("type") is None)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ")[0] == "default-src 'none'" and f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert "http://" not in page.text and "https://" not in page.text
    for element in page.elements:
        assert element["tag"] not in ("link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in element if name.startswith("on")], element
        assert element.get("src", "data:").startswith("data:")
        links = (element.get("href", "#"), element.get("xlink:href", "#"))
        assert all(re.match(r"#|\./|[a-z_]+\.(png|svg|csv|json)$", link) for link in links), links
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.text))


def test_every_number_of_the_results_is_the_summarys(whole: Report, page: Page) -> None:
    rows, table = summary(whole)["rows"], page.table("results")
    assert len(rows) == len(table) == 4
    for row, cells in zip(rows, table, strict=True):
        assert cells[0]["text"] == row["arm"]
        shown = {cell["data-field"]: cell for cell in cells if "data-field" in cell}
        assert set(shown) == {*RESULTS, "seed"} and shown["seed"]["text"] == str(row["n"])
        for field in RESULTS:
            stored = row["metrics"][field]
            number, _, half = shown[field]["text"].partition(" ±")
            assert float(shown[field]["data-value"]) == stored["mean"]
            assert number == METRICS[field].format(stored["mean"])
            if field.endswith("accuracy"):
                assert half == METRICS[field].format(stored["half_width"])
            runs = [summary(whole)["runs"][int(n)] for n in shown[field]["button"]["data-runs"].split()]
            assert [run["arm"] for run in runs] == [row["arm"]] * 3 and [run["seed"] for run in runs] == row["seeds"]


def test_no_metric_is_missing() -> None:
    assert {*RESULTS, "depth", "width", "resolution"} == set(METRICS)


def test_every_seed_has_a_mark_that_leads_to_its_run(whole: Report, page: Page) -> None:
    runs, known = summary(whole)["runs"], page.data()["runs"]
    marks = [e for e in page.find("g") if e.get("class") == "trace mark"]
    seeds = {e["data-runs"] for e in marks if " " not in e["data-runs"]}
    assert seeds == {str(number) for number in range(len(runs))}
    figures = [e for e in page.find("figure") if e.get("class") == "cost"]
    assert len([e for e in marks if e["data-field"] == "test_accuracy"]) == len(figures) * 2 * (len(runs) + 4)
    for run, facts in zip(runs, known, strict=True):
        told = dict(facts["facts"])
        assert facts["folder"] == run["folder"] and facts["link"] == f"./{run['folder']}/record.json"
        assert (whole.folder / facts["link"]).is_file()
        assert told["config"] == run["config_hash"] and told["code"] == run["code_revision"]
        assert told["predictions"] == run["predictions_sha256"] and told["weights"] == run["weights_sha256"]
        assert facts["values"]["test_accuracy"] == f"{100 * run['test_accuracy']:.2f}"
    for mark in (e for e in marks if " " not in e["data-runs"] and e["data-field"] == "test_accuracy"):
        facts = known[int(mark["data-runs"])]
        assert mark["aria-label"].endswith(f"seed {facts['seed']}: {facts['values']['test_accuracy']} %")


def test_costs_can_be_chosen_and_the_studys_own_comes_first(page: Page, tmp_path: Path) -> None:
    options = [e["value"] for e in page.find("option")]
    figures = page.find("figure", **{"class": "cost"})
    assert options == [e["data-cost"] for e in figures] and options[0] == "macs"
    assert set(options) == {"macs", "params", "activations", "train_macs", "seconds_per_epoch", "seconds"} | {
        "peak_memory_bytes"
    }
    assert set(COSTS) == set(options) and ["hidden" in e for e in figures] == [False] + [True] * (len(figures) - 1)
    slow = [dataclasses.replace(r, currency="latency_s", price=0.2 if r.budget > 1 else 0.1) for r in records()]
    axes = cost_axes(group([dataclasses.replace(r, base_price=0.1) for r in slow]))
    assert axes[0].field == "price" and "seconds a picture" in axes[0].label
    assert "seconds" not in [m.field for m in cost_axes(group(records(seconds=0.0)))]


def test_asked_and_realised_stand_side_by_side(tmp_path: Path) -> None:
    shares = {"asked_share_depth": 0.4, "asked_share_width": 0.25, "asked_share_resolution": 0.35}
    shares |= {"share_depth": 0.38, "share_width": 0.3, "share_resolution": 0.32}
    facts = {"asked_depth": 1.27, "asked_width": 1.13, "asked_resolution": 1.1, "snapped_budget": 2.009, **shares}
    price = {"price": 2.011 * 116_300_000.0}
    write_arm(tmp_path / "s", dataclasses.replace(record(), **facts, **price))
    [row] = opened(write_report(tmp_path / "s")).table("built")
    shown = [cell["text"] for cell in row]
    assert shown[:-2] == ["compound", "2", "2.009", "2.011", "1.27", "1.31", "1.13", "1.11", "35.2", "36"]
    assert shown[-2:] == ["40 / 25 / 35", "38 / 30 / 32"]
    assert all(cell["button"]["data-runs"] == "0" for cell in row[1:])


def test_maps_stand_in_columns_of_arms_as_small_pictures(page: Page) -> None:
    rows = page.table("maps")
    assert len(rows) == 6 and {len(row) for row in rows} == {5}
    pictures = page.find("img")
    assert len(pictures) == 30 and all(e["alt"] and e["src"].startswith("data:image/webp;base64,") for e in pictures)
    assert max(len(e["src"]) for e in pictures) < 12_000
    assert [cell["button"]["data-runs"] for cell in rows[0][1:]] == ["0", "3", "6", "9"]


def scores_of(folder: Path, shift: float) -> None:
    """Scores of four pictures, of which the network classifies two rightly: `energy` is 0.25 + shift there."""
    scores = np.full((len(SOURCES), len(GRIDS), len(MEASURES), 4), np.nan, np.float32)
    scores[SOURCES.index("map"), GRIDS.index("common"), list(MEASURES).index("energy")] = [0.25 + shift] * 2 + [0.9] * 2
    ScoreFile(
        identities=np.arange(4),
        labels=np.zeros(4, np.int64),
        predictions=np.array([0, 0, 1, 1]),
        probability=np.full(4, 0.4, np.float32),
        boxes=np.zeros((4, 4), np.float32),
        maps=np.zeros((4, 2, 2), np.float32),
        scores=scores,
        measures=np.array(list(MEASURES)),
        common_grid=np.array([2, 2]),
        resolution=32,
        larger=0,
        asked=4,
        method="cam",
    ).save(folder)


def test_scores_of_maps_stand_beneath_them(tmp_path: Path) -> None:
    for run in arm_records(ACCURACIES):
        folder = write_arm(tmp_path / "s", run, cam=run.seed == 0)
        if run.arm != "depth":
            scores_of(folder, 0.01 * run.seed)
    found = opened(write_report(tmp_path / "s"))
    cells = [e["text"] for e in found.elements if "tfoot" in e["within"] and e["tag"] in ("td", "th")]
    # 0.25, 0.26, 0.27: mean 0.26, standard deviation 0.01, t(0.975, 2) = 4.3027
    assert cells[1:] == [GRID_NAMES["common"], "0.260 ±0.025", "-", "0.260 ±0.025"]
    assert cells[0].startswith(MEASURES["energy"].label) and MEASURES["energy"].chance in cells[0]
    (folder / "cam_scores.npz").write_bytes(b"PK nothing")
    assert "cam_scores.npz is unreadable" in opened(write_report(tmp_path / "s")).text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    study = tmp_path / "<img src=x onerror=alert(1)>"
    runs = [dataclasses.replace(r, arm=HOSTILE, data=HOSTILE, notes=HOSTILE) for r in arm_records(ACCURACIES)[:3]]
    for number, run in enumerate(runs):
        folder = write_arm(study, dataclasses.replace(run, arm=f"a{number}"), cam=True)
        run.write(folder)
    hostile = study / "javascript:alert(1)\"'><b>"
    folder.rename(hostile)
    cam = load_cam(hostile / "cam.npz")
    names = np.array([f"{HOSTILE}{number}\udcff" for number in range(10)])  # as a folder's name of broken bytes
    dataclasses.replace(cam, class_names=names).save(hostile)
    write_status(study / "<script>alert(2)<!--", "failed", HOSTILE)
    found = opened(write_report(study))
    assert len(found.find("script")) == 2 and "alert" not in found.find("script")[0]["text"]
    assert not found.find("b") and HOSTILE in found.find("h1")[0]["text"]
    assert HOSTILE in [e["text"] for e in found.find("th", scope="row")]
    assert any(e["text"].startswith(HOSTILE) for e in found.find("text")), "no label in the figure"
    links = [e["href"] for e in found.find("a") if "record.json" in e.get("href", "")]
    assert any(link.startswith("./javascript%3Aalert") for link in links)
    assert found.data()["runs"][-1]["folder"] in {hostile.name, *(r.name for r in study.iterdir())}


def test_one_arm_alone_has_a_page(tmp_path: Path) -> None:
    write_arm(tmp_path / "s", record(), history=False)
    found = opened(write_report(tmp_path / "s"))
    assert not found.find("section", id="curves") and not found.find("section", id="maps")
    assert not found.find("a", href="#curves") and not found.find("a", href="#maps")
    assert [row[0]["text"] for row in found.table("results")] == ["compound"]
    marks = [e for e in found.find("g") if e.get("class") == "trace mark"]
    assert len(marks) == 2 * len(found.find("option")) and {e["data-runs"] for e in marks} == {"0"}
    assert "has no readable history.csv" in found.text and "no maps to show" in found.text


def test_unfinished_arms_are_listed(tmp_path: Path) -> None:
    write_arm(tmp_path / "s", record())
    write_status(tmp_path / "s" / "depth-2x-seed0-1", "failed", "RuntimeError: out of <memory>")
    found = opened(write_report(tmp_path / "s"))
    listed = [e["text"] for e in found.find("li") if e["text"].startswith("depth-2x-seed0-1")]
    assert listed == ["depth-2x-seed0-1: failed (RuntimeError: out of <memory>)"]


def test_every_guard_says_what_it_found_and_openings_are_counted(tmp_path: Path) -> None:
    runs = arm_records({"compound": [0.9, 0.91, 0.92], "depth": [0.9, 0.89, 0.91]})
    twice = [dataclasses.replace(run, test_openings=2) if run.arm == "depth" else run for run in runs]
    for run in twice:
        write_arm(tmp_path / "s", run)
    report = write_report(tmp_path / "s")
    shown = opened(report)
    (guide,) = [e["text"] for e in shown.find("table") if "what it holds" in e["text"]]
    told = " ".join(guide.split())
    for code, meaning in GUARDS.items():
        found = {"G4": "1 in the way of a claim", "G12": "1 warning"}.get(code, "nothing")  # there are no maps
        assert f"{code}{meaning}{found}" in told
    line = "The test split was opened 9 times in all, not once by 3 of 6 runs."
    assert any(line in e["text"] for e in shown.find("p"))
    assert line in (report.folder / "summary.md").read_text()


def test_guards_in_the_way_stand_apart_from_warnings(tmp_path: Path) -> None:
    for run in arm_records({"compound": [0.92], "depth": [0.9]}):
        write_arm(tmp_path / "s", dataclasses.replace(run, notes="the GPU was busy"))
    report = write_report(tmp_path / "s")
    found = opened(report)
    listed = {e["text"] for e in found.find("li") if e["within"][-1] == "ul"}
    for finding in summary(report)["findings"]:
        assert finding["text"] in listed
    titles = [e["text"] for e in found.find("h3")]
    assert "In the way of a claim" in titles and "Warnings" in titles


def test_sentences_name_the_runs_behind_them(whole: Report, page: Page) -> None:
    runs = summary(whole)["runs"]
    [behind] = [e for e in page.find("button") if "behind" in e.get("class", "")]
    assert {runs[int(n)]["arm"] for n in behind["data-runs"].split()} == {"compound", "depth", "width"}


def test_the_page_draws_no_conclusion_of_its_own(page: Page) -> None:
    """Outside the sentences of the verdict no word ranks arms, and no number is set off from the others."""
    said = " ".join(e["text"] for e in page.find("p") if e["within"][-1] == "li")
    rest = " ".join(e["text"] for e in page.find("main")).replace(said, "")
    rest = rest.replace("P(best of its budget)", "").replace("as much or less is better", "")
    rest = rest.replace("A finer grid is not better evidence", "")
    assert not re.search(r"\b(best|better|beats|winner|wins|worse|superior)\b", rest.replace("name no winner", ""))
    numbers = [e for e in page.elements if e["tag"] in ("strong", "b", "em", "mark")]
    assert all(e["within"][-2:] == ["li", "p"] for e in numbers)


def test_writing_again_gives_the_same_bytes(whole: Report) -> None:
    before = {path.name: path.read_bytes() for path in whole.files}
    assert any(name.endswith(".svg") for name in before)
    assert {path.name: path.read_bytes() for path in write_report(whole.folder).files} == before


def test_a_large_study_stays_under_five_megabytes(tmp_path: Path) -> None:
    """Five arms, ten seeds, long curves, eight maps of noise, which compresses worst."""
    noise = np.random.default_rng(0)
    arms = {
        arm: list(0.9 + noise.normal(0, 0.01, 10)) for arm in ("compound", "depth", "dwr-fast", "resolution", "width")
    }
    long = {"epochs": 350, "best_epoch": 340, "resolution": 224, "base_resolution": 224}
    runs = [*arm_records(arms, **long), *base_records(list(0.8 + noise.normal(0, 0.01, 10)), **long)]
    for run in runs:
        folder = write_arm(tmp_path / "s", run)
        if run.seed == 0:
            write_cam(folder, run, count=8)
            cam = load_cam(folder / "cam.npz")
            pictures = noise.integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
            dataclasses.replace(cam, images=pictures, boxes=np.full((8, 4), np.nan, np.float32)).save(folder)
    report = write_report(tmp_path / "s")
    size = (report.folder / PAGE_FILE).stat().st_size
    assert size < 5_000_000 and len(opened(report).find("img")) == 8 * 7


def test_figures_lie_beside_the_page_as_png_svg_and_csv(whole: Report) -> None:
    names = {path.name for path in whole.files}
    assert set(FIGURES) | {"accuracy_vs_macs.svg", "learning_curves.svg"} < names
    for name in ("accuracy_vs_macs.svg", "learning_curves.svg"):
        root = ElementTree.fromstring((whole.folder / name).read_text())
        ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        assert root.tag.endswith("svg") and len(ids) == len(set(ids))
    with (whole.folder / "accuracy_vs_macs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    seeds = {row["folder"]: float(row["test accuracy (%)"]) for row in rows if row["mark"] == "seed"}
    assert seeds == {folder_name(r): pytest.approx(100 * r.test_accuracy) for r in records()}
    [mean] = [row for row in rows if row["mark"] == "mean" and row["arm"] == "compound"]
    assert float(mean["test accuracy (%)"]) == pytest.approx(92.25)
    half = 4.302653 * np.std([92.1, 92.4, 92.25], ddof=1) / np.sqrt(3)
    assert (float(mean["high"]) - float(mean["low"])) / 2 == pytest.approx(half)
    with (whole.folder / "learning_curves.csv").open(newline="") as stream:
        curves = list(csv.DictReader(stream))
    assert len(curves) == len(records()) * 10
    assert {row["epoch"] for row in curves if row["chosen by validation"] == "1"} == {"9"}
    with (whole.folder / "cam_grid.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 4 * 6


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def palettes() -> dict[str, dict[str, str]]:
    css = (Path(page_module.__file__).parent / "page.css").read_text()
    found = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root[^{]*\{(.*?)\}", css, re.S)
    ]
    light, dark = found[:2]
    return {"light": light, "dark": {**light, **dark}}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(theme: str) -> None:
    """4.5 for text and 3 for marks, as WCAG asks. Okabe and Ito's light colours fall short on white as published: each
    stands beside its marker's own shape and a label that is dark enough."""
    colours = palettes()[theme]
    texts = ["ink", "soft", "link", "supported", "equivalent", "contradicted", "open", "unknown", "right", "wrong"]
    texts += [name for name in colours if name.startswith("arm-") and name.endswith("-text")]
    assert len(texts) == 10 + len(ARM_COLOURS) + 1
    for name in texts:
        for ground in ("paper", "raised"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    least = 3.0 if theme == "dark" else 2.2
    marks = [name for name in colours if re.fullmatch(r"arm-(base|\d)", name)]
    assert all(contrast(colours[name], colours["paper"]) >= least for name in marks) and len(marks) == 8


def test_every_colour_of_a_figure_has_a_variable() -> None:
    colours = palettes()["light"]
    assert {VARIABLES[c.lower()] for c in (*ARM_COLOURS, BASE_COLOUR)} <= set(colours)
    assert set(VARIABLES.values()) <= set(colours)
    for number, colour in enumerate(ARM_COLOURS):
        assert colours[f"arm-{number}"] == colour.lower()


def test_figures_in_the_page_carry_variables_instead_of_colours(page: Page) -> None:
    styles = [e["style"] for e in page.elements if "svg" in e["within"] and "style" in e]
    assert len(styles) > 100 and not [style for style in styles if "#" in style]
    assert not [e for e in page.elements if e["tag"] in ("style", "metadata") and "svg" in e["within"]]
