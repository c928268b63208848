"""Every mistake a user can make on the command line or in a YAML file ends in one sentence and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from src.launch.hydra_launcher import register
from src.messages import UserMistake, mistakes, run_hydra, sentence

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
defaults:
  - scaling: base
  - recipe: short
  - _self_
  - override hydra/launcher: process
  - override hydra/sweeper: study
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
seed: 0
task: none
note: plain
hydra:
  output_subdir: null
  run: {dir: out}
  sweep: {dir: out}
"""

PROBE = """
recipe: {epochs: 1}
hydra:
  sweeper:
    params: {scaling: "base,depth", seed: "0,1,2"}
"""


@dataclass
class Recipe:
    epochs: int = 1
    batch_size: int = 8


@dataclass
class Study:
    recipe: Recipe = field(default_factory=Recipe)
    scaling: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    task: str = ""
    note: str = ""


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the tiny app of this file in this process: returns exit code, standard output, standard error."""
    conf = tmp_path / "conf"
    for folder in ("scaling", "recipe", "extra"):
        (conf / folder).mkdir(parents=True)
    (conf / "config.yaml").write_text(CONFIG)
    for name in ("base", "depth", "width", "compound"):
        (conf / "scaling" / f"{name}.yaml").write_text(f"name: {name}\n")
    (conf / "recipe" / "short.yaml").write_text("epochs: 2\nbatch_size: 8\n")
    (conf / "extra" / "thing.yaml").write_text("a: 1\n")
    (tmp_path / "sweeps" / "wandb").mkdir(parents=True)
    (tmp_path / "sweeps" / "probe.yaml").write_text(PROBE)
    (tmp_path / "sweeps" / "wandb" / "bayes.yaml").write_text("method: bayes\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def task(config: DictConfig) -> None:
        print("ran", config.scaling.name, "full" if "HYDRA_FULL_ERROR" in os.environ else "")
        what = config.task
        with mistakes(conf):
            if what == "schema":
                OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Study), config))
            elif what == "resolve":
                OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            elif what == "rule":
                raise ValueError("budget=-1 should be positive")
        if what == "bug":
            raise ValueError("deep in the code")
        if what == "lookup":
            _ = config.nothing

    def run_all(configs: list[DictConfig]) -> list[int]:
        for config in configs:
            print("job", config.scaling.name, config.seed)
        return [0] * len(configs)

    main = hydra.main(version_base=None, config_path=str(conf), config_name="config")(task)

    def run(*arguments: str) -> tuple[int, str, str]:
        register(run_all, tmp_path / "sweeps")
        monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
        capsys.readouterr()
        code = run_hydra(main, conf)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


MISTAKES = [
    ("scaling=dpeth", ["scaling=dpeth", "did you mean depth", "base, compound, depth, width"]),
    ("-m scaling=base,dpeth", ["scaling=dpeth", "did you mean depth"]),
    ("scaling=", ["scaling=", "base, compound, depth, width"]),
    ("scaling=3", ["must be a string"]),
    ("recipe.epoch=3", ["recipe.epoch=3", "did you mean epochs", "batch_size"]),
    ("-m recipe.epoch=3,4", ["recipe.epoch=3", "did you mean epochs"]),
    ("recipe.epochs.foo=3", ["recipe.epochs.foo=3", "no key foo"]),
    ("recipee.epochs=3", ["recipee.epochs=3", "did you mean recipe"]),
    ("scalling=depth", ["scalling=depth", "did you mean scaling"]),
    ("extra=thing", ["extra=thing", "+extra=thing"]),
    ("+scaling=depth", ["scaling", "without a plus"]),
    ("+scaling=base", ["scaling", "without a plus"]),
    ("++scaling=base", ["write scaling=base"]),
    ("+seed=3", ["+seed", "write seed=VALUE"]),
    ("~seeed", ["~seeed", "did you mean seed"]),
    ("~seed=7", ["'seed' is 0 and not 7"]),
    ("a=[1,2", ["a=[1,2", "brackets"]),
    ("seed=range(3", ["seed=range(3"]),
    ("seed", ["seed=VALUE"]),
    ("seed=1,2", ["seed=1,2", "add -m"]),
    ("seed=range(3)", ["seed=range(3)", "add -m"]),
    ("hydra.mode=FOO", ["hydra.mode=FOO", "RUN", "MULTIRUN"]),
    ("hydra/launcher=proces", ["hydra/launcher=proces", "did you mean process", "basic"]),
    ("+sweep=prob", ["+sweep=prob", "did you mean probe"]),
    ("+sweep=wandb/bayes", ["+sweep=wandb/bayes", "probe"]),
    ("-m +sweep=probe,probe", ["several studies"]),
    ("sweep=probe", ["+sweep=probe"]),
    ("-m seed=1 seed=2,3", ["seed twice", "seed=2,3"]),
    ("-m seed=1,1", ["seed=1,1", "twice"]),
    ("-m seed=range(0)", ["seed=range(0)", "no arm"]),
    ("-m seed=interval(0,1)", ["seed=interval(0,1)", "range"]),
    ("-m seed=1,${nope}", ["${nope}", "does not exist"]),
    ("task=resolve note=???", ["note has no value", "note=VALUE"]),
    ("task=resolve note=${recpe.epochs}", ["${recpe.epochs}", "did you mean recipe.epochs"]),
    ("task=resolve note=${oc.env:NOPE_NOPE}", ["note", "NOPE_NOPE"]),
    ("task=resolve note=${foo:1}", ["note", "foo"]),
    ("task=schema recipe.epochs=abc", ["recipe.epochs=abc", "whole number"]),
    ("task=schema recipe.epochs=null", ["recipe.epochs=null", "whole number"]),
    ("task=schema +recipe.epoch=3", ["no key epoch in recipe", "did you mean epochs"]),
    ("task=rule", ["budget=-1 should be positive"]),
    ("--multirunn", ["--multirunn", "did you mean --multirun"]),
    ("scaling=base -m seed=1", ["seed=1", "-m before or after"]),
    ("--cfg jbo", ["jbo", "job"]),
    ("--resolve", ["--resolve"]),
    ("--run -m", ["Only one of"]),
    ("--config-name nope", ["nope"]),
    ("--config-dir /nope", ["/nope"]),
]


@pytest.mark.parametrize(("line", "parts"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistake_is_one_sentence(cli: Cli, line: str, parts: list[str]) -> None:
    code, _, err = cli(*line.split())
    assert code == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err, err
    assert "Error executing" not in err and "hydra.cc" not in err and len(err) < 400


def test_typo_in_yaml_names_file_and_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "conf" / "recipe" / "short.yaml").write_text("epochs: 2\nbatch_sise: 8\n")
    code, _, err = cli("task=schema")
    assert code == 2
    assert "conf/recipe/short.yaml line 2: batch_sise: 8" in err
    assert "did you mean batch_size" in err and err.count("\n") == 1


def test_interpolation_in_yaml_names_file_and_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "conf" / "recipe" / "short.yaml").write_text("epochs: 2\nbatch_size: ${recipe.epoch}\n")
    code, _, err = cli("task=resolve")
    assert code == 2
    assert "conf/recipe/short.yaml line 2" in err and "did you mean recipe.epochs" in err


@pytest.mark.parametrize("arguments", [("task=none",), ("-m", "seed=0,1")])
def test_broken_yaml_names_file_and_line(cli: Cli, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "conf" / "recipe" / "short.yaml").write_text("epochs: 2\nbatch_size: [8\n")
    code, _, err = cli(*arguments)
    assert code == 2 and err.count("\n") == 1
    assert "short.yaml line 3" in err


def test_list_in_sweep_file_is_no_string(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "probe.yaml").write_text("hydra: {sweeper: {params: {seed: [0, 1]}}}\n")
    code, _, err = cli("+sweep=probe")
    assert code == 2 and err.count("\n") == 1
    assert "hydra.sweeper.params.seed=[0, 1]" in err


def test_wrong_type_in_sweep_file_names_the_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "probe.yaml").write_text("hydra: {mode: FOO}\n")
    code, _, err = cli("+sweep=probe")
    assert code == 2 and err.count("\n") == 1
    assert "sweeps/probe.yaml" in err and "hydra.mode=FOO" in err


def test_missing_choice_in_sweep_file_names_the_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "probe.yaml").write_text("defaults:\n  - override /scaling: widht\n")
    code, _, err = cli("+sweep=probe")
    assert code == 2
    assert "scaling=widht" in err and "did you mean width" in err


def test_mandatory_choice_lists_the_options(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("scaling: base", "scaling: ???"))
    code, _, err = cli()
    assert code == 2 and err.count("\n") == 1
    assert "scaling must be chosen" in err and "base, compound, depth, width" in err


@pytest.mark.parametrize(("what", "kind"), [("bug", "ValueError"), ("lookup", "ConfigAttributeError")])
def test_bug_keeps_its_traceback(cli: Cli, what: str, kind: str) -> None:
    code, _, err = cli(f"task={what}")
    assert code == 1
    assert "Traceback" in err and kind in err and "error: " not in err.splitlines()[-1]


def test_full_error_shows_traceback_of_a_mistake(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for line in ("scaling=dpeth", "task=rule"):
        code, _, err = cli(line)
        assert code == 2
        assert "Traceback" in err and err.splitlines()[-1].startswith("error: ")


def test_environment_of_the_task_is_the_users(cli: Cli) -> None:
    code, out, err = cli("scaling=depth")
    assert (code, out.split(), err) == (0, ["ran", "depth"], "")
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_config_and_help_are_shown(cli: Cli) -> None:
    code, out, err = cli("--cfg", "job", "scaling=width")
    assert (code, err) == (0, "") and "name: width" in out and "ran" not in out
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    assert "scaling: base, compound, depth, width" in out and "sweep: probe" in out
    assert cli("--version")[0] == 0


@pytest.mark.parametrize(
    ("stop", "code", "text"),
    [
        (SystemExit(), 0, ""),
        (SystemExit(7), 7, ""),
        (SystemExit("why"), 1, "why"),
        (KeyboardInterrupt(), 130, "interr"),
    ],
)
def test_exits_pass(
    cli: Cli,
    stop: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        raise stop

    monkeypatch.setattr(sys, "argv", ["app.py"])
    assert run_hydra(main, Path("conf")) == code
    err = capsys.readouterr().err
    assert text in err and "Traceback" not in err


def test_only_mistakes_have_a_sentence(tmp_path: Path) -> None:
    assert sentence(ValueError("from our own code"), tmp_path) is None
    assert sentence(RuntimeError("shape mismatch"), tmp_path) is None
    assert sentence(UserMistake("budget=0 is too small"), tmp_path) == "budget=0 is too small"
    config = OmegaConf.create({"a": 1})
    OmegaConf.set_struct(config, True)
    with pytest.raises(Exception) as caught:
        _ = config["b"]
    assert sentence(caught.value, tmp_path) is None
    with open_dict(config):
        config.b = 2
    OmegaConf.set_readonly(config, True)
    with pytest.raises(Exception) as caught:
        config.b = 3
    assert sentence(caught.value, tmp_path) is None


APP = """
import sys
from pathlib import Path
import hydra
from src.launch.hydra_launcher import register
from src.messages import run_hydra
HERE = Path(__file__).parent

@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config):
    print("ran", config.scaling.name)

def run_all(configs):
    print("jobs", [(c.scaling.name, c.seed) for c in configs])
    return [int(c.seed == 2) for c in configs]

if __name__ == "__main__":
    register(run_all, HERE / "sweeps")
    sys.exit(run_hydra(main, HERE / "conf"))
"""


def test_as_a_program(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)

    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "app", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    good = program("scaling=width")
    assert (good.returncode, good.stdout, good.stderr) == (0, "ran width\n", "")
    bad = program("recipe.epoch=3")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: recipe.epoch=3: ") and bad.stderr.count("\n") == 1
    sweep = program("+sweep=probe", "scaling=depth", "seed=1,2")
    assert (sweep.returncode, sweep.stdout, sweep.stderr) == (1, "jobs [('depth', 1), ('depth', 2)]\n", "")
