"""The process launcher, the study sweeper and the sweep group, through Hydra itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from src.launch.hydra_launcher import expand_jobs, register, spell_out
from src.messages import run_hydra

CONFIG = """
defaults:
  - scaling: base
  - data: plain
  - recipe: short
  - _self_
  - override hydra/launcher: process
  - override hydra/sweeper: study
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
seed: 0
rule: ${hydra:runtime.choices.scaling}
stamp: ${now:%f}
hydra:
  output_subdir: null
  run: {dir: out}
  sweep: {dir: out}
"""

PROBE = """# @package _global_
defaults:
  - override /data: clutter
recipe: {epochs: 1}
hydra:
  sweeper:
    params: {scaling: "base,depth", seed: "0,1,2"}
"""

Sweep = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A tiny app; what it was called with is kept in the mapping."""
    for group, names in {"scaling": ["base", "depth", "width"], "data": ["plain", "clutter"]}.items():
        (tmp_path / "conf" / group).mkdir(parents=True)
        for name in names:
            (tmp_path / "conf" / group / f"{name}.yaml").write_text(f"name: {name}\n")
    (tmp_path / "conf" / "recipe").mkdir()
    (tmp_path / "conf" / "recipe" / "short.yaml").write_text("epochs: 2\n")
    (tmp_path / "conf" / "recipe" / "long.yaml").write_text("epochs: 90\n")
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    (tmp_path / "sweeps" / "wandb").mkdir(parents=True)
    (tmp_path / "sweeps" / "probe.yaml").write_text(PROBE)
    (tmp_path / "sweeps" / "wandb" / "bayes.yaml").write_text("method: bayes\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    seen: dict[str, Any] = {"batches": [], "ran": [], "codes": None, "folder": tmp_path}

    def run_all(configs: list[DictConfig]) -> list[int]:
        assert HydraConfig.instance().cfg is None or "sweep" in HydraConfig.get()
        seen["batches"].append([OmegaConf.to_container(config) for config in configs])
        return seen["codes"] or [0] * len(configs)

    def task(config: DictConfig) -> None:
        seen["ran"].append(OmegaConf.to_container(config, resolve=True))

    main = hydra.main(version_base=None, config_path=str(tmp_path / "conf"), config_name="config")(task)

    def call(*arguments: str) -> int:
        seen["batches"], seen["ran"] = [], []
        register(run_all, tmp_path / "sweeps")
        monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
        return run_hydra(main, tmp_path / "conf")

    seen["call"] = call
    return seen


@pytest.fixture
def sweep(app: dict[str, Any]) -> Sweep:
    """Runs a sweep that must succeed and returns the configs of its only batch."""

    def run(*arguments: str) -> list[dict[str, Any]]:
        assert app["call"](*arguments) == 0
        assert app["ran"] == []
        (batch,) = app["batches"]
        return batch

    return run


def grid(jobs: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(job["scaling"]["name"], job["seed"]) for job in jobs]


def test_all_jobs_arrive_at_once_and_resolved(sweep: Sweep) -> None:
    jobs = sweep("-m", "scaling=depth,width", "seed=0,1")
    assert grid(jobs) == [("depth", 0), ("depth", 1), ("width", 0), ("width", 1)]
    assert [job["rule"] for job in jobs] == ["depth", "depth", "width", "width"]
    assert all("hydra" not in job for job in jobs)


@pytest.mark.parametrize(
    ("line", "seeds"),
    [
        ("seed=range(6)", [0, 1, 2, 3, 4, 5]),
        ("seed=choice(4,2)", [4, 2]),
        ("seed=7", [7]),
        ("++seed=3,4", [3, 4]),
    ],
)
def test_forms_of_a_sweep(sweep: Sweep, line: str, seeds: list[int]) -> None:
    assert [job["seed"] for job in sweep("-m", line)] == seeds


def test_added_deleted_quoted_and_globbed_keys(sweep: Sweep) -> None:
    jobs = sweep("-m", "+extra=a,b", "~stamp", "+text='x,y'", "scaling=glob(*,exclude=base)")
    assert [(job["extra"], job["text"], job["scaling"]["name"]) for job in jobs] == [
        ("a", "x,y", "depth"),
        ("a", "x,y", "width"),
        ("b", "x,y", "depth"),
        ("b", "x,y", "width"),
    ]
    assert all("stamp" not in job for job in jobs)


def test_named_study_runs_without_flag(sweep: Sweep) -> None:
    jobs = sweep("+sweep=probe")
    assert grid(jobs) == [(name, seed) for name in ("base", "depth") for seed in (0, 1, 2)]
    assert {(job["data"]["name"], job["recipe"]["epochs"]) for job in jobs} == {("clutter", 1)}
    assert grid(sweep("-m", "+sweep=probe")) == grid(jobs)


@pytest.mark.parametrize("key", ["seed", "++seed"])
@pytest.mark.parametrize("flag", [(), ("-m",)])
def test_command_line_beats_swept_keys_of_the_file(sweep: Sweep, flag: tuple[str, ...], key: str) -> None:
    jobs = sweep(*flag, "+sweep=probe", f"{key}=5,6", "scaling=width")
    assert grid(jobs) == [("width", 5), ("width", 6)]


def test_command_line_beats_plain_keys_and_choices_of_the_file(sweep: Sweep) -> None:
    jobs = sweep("+sweep=probe", "seed=0", "scaling=base", "recipe.epochs=7", "data=plain")
    assert [(job["recipe"]["epochs"], job["data"]["name"]) for job in jobs] == [(7, "plain")]
    jobs = sweep("+sweep=probe", "seed=0", "scaling=base", "recipe.epochs=7,8")
    assert [job["recipe"]["epochs"] for job in jobs] == [7, 8]


def test_named_study_without_parameters_is_a_single_run(app: dict[str, Any]) -> None:
    (app["folder"] / "sweeps" / "one.yaml").write_text("recipe: {epochs: 5}\n")
    assert app["call"]("+sweep=one") == 0
    assert app["batches"] == [] and [job["recipe"]["epochs"] for job in app["ran"]] == [5]


def test_single_run_does_not_use_the_launcher(app: dict[str, Any]) -> None:
    assert app["call"]("scaling=width") == 0
    assert app["batches"] == [] and [job["rule"] for job in app["ran"]] == ["width"]


def test_basic_launcher_stays_selectable(app: dict[str, Any]) -> None:
    assert app["call"]("hydra/launcher=basic", "+sweep=probe", "seed=4") == 0
    assert app["batches"] == [] and grid(app["ran"]) == [("base", 4), ("depth", 4)]
    assert app["call"]("-m", "hydra/sweeper=basic", "scaling=base,depth") == 0
    assert [grid(batch) for batch in app["batches"]] == [[("base", 0), ("depth", 0)]]


def test_time_stamp_is_the_same_in_all_jobs(sweep: Sweep) -> None:
    jobs = sweep("-m", "seed=0,1", "hydra.job.name=${now:%f}", "+again=${stamp}")
    assert all(job["again"] == job["stamp"] for job in jobs)


def test_failed_job_makes_exit_code_1(app: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    app["codes"] = [0, 7, 0]
    assert app["call"]("-m", "seed=0,1,2") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_nothing_runs_and_nothing_is_written_if_one_job_is_wrong(app: dict[str, Any]) -> None:
    assert app["call"]("-m", "scaling=base,depth", "+a=${b}") == 2
    assert app["batches"] == []


def test_no_folder_of_named_studies_is_an_unknown_name(
    app: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweeps" / "probe.yaml").unlink()
    assert app["call"]("+sweep=probe") == 2
    assert "+sweep=probe is unknown" in capsys.readouterr().err
    assert app["ran"] == []


SHORT = {"budget": "budget.multiple"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("budget=2", "budget.multiple=2"),
        ("budget=2,4", "budget.multiple=2,4"),
        ("++budget=2", "++budget.multiple=2"),
        ("budget={multiple: 3}", "budget={multiple: 3}"),
        ("budget.currency=params", "budget.currency=params"),
        ("budgets=2", "budgets=2"),
        ("~budget", "~budget"),
        ("-m", "-m"),
        ("study=budget=2", "study=budget=2"),
    ],
)
def test_a_block_may_be_written_as_one_value(written: str, meant: str) -> None:
    assert spell_out([written], SHORT) == [meant]


def expanded(arms: list[str], *arguments: str, **params: str) -> list[list[str]]:
    return expand_jobs(params, arms, arguments, OverridesParser.create(), SHORT)


def test_listed_arms_meet_every_combination_of_the_rest() -> None:
    assert expanded(["rule=base", "rule=free rule.depth=4 budget=3"], "seed=0,1") == [
        ["rule=base", "seed=0"],
        ["rule=free", "rule.depth=4", "budget.multiple=3", "seed=0"],
        ["rule=base", "seed=1"],
        ["rule=free", "rule.depth=4", "budget.multiple=3", "seed=1"],
    ]
    assert expanded(["rule=base", "rule=deep"]) == [["rule=base"], ["rule=deep"]]
    assert expanded([], "seed=3", seed="0,1") == [["seed=3"]]


@pytest.mark.parametrize("arguments", [("rule=wide",), ("rule=wide,deep",), ("++rule=wide",)])
def test_what_every_listed_arm_sets_cannot_be_set_beside_them(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigCompositionException, match="rule is set by each arm that this study lists"):
        expanded(["rule=base", "rule=deep"], *arguments)
    with pytest.raises(ConfigCompositionException, match="rule is set by each arm"):
        expanded(["rule=base"], rule="wide,deep")


def test_a_named_study_of_listed_arms_runs_without_flag(app: dict[str, Any], sweep: Sweep) -> None:
    (app["folder"] / "sweeps" / "listed.yaml").write_text(
        "hydra:\n  sweeper:\n    arms: [scaling=base, scaling=depth seed=7]\n    params: {recipe.epochs: '1,3'}\n"
    )
    found = [(job["scaling"]["name"], job["seed"], job["recipe"]["epochs"]) for job in sweep("+sweep=listed")]
    assert found == [("base", 0, 1), ("depth", 7, 1), ("base", 0, 3), ("depth", 7, 3)]


def test_a_named_study_may_write_a_block_as_one_value(app: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (app["folder"] / "sweeps" / "short.yaml").write_text("recipe: 5\nhydra:\n  sweeper:\n    params: {seed: '0,1'}\n")
    batches: list[list[DictConfig]] = []

    def run_all(configs: list[DictConfig]) -> list[int]:
        batches.append(configs)
        return [0] * len(configs)

    register(run_all, app["folder"] / "sweeps", shorthand={"recipe": "recipe.epochs"})
    monkeypatch.setattr(sys, "argv", ["app.py", "+sweep=short"])
    folder = str(app["folder"] / "conf")
    main = hydra.main(version_base=None, config_path=folder, config_name="config")(lambda config: None)
    assert run_hydra(main, app["folder"] / "conf") == 0
    assert [config.recipe.epochs for config in batches[0]] == [5, 5]
