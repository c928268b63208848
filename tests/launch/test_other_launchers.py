"""Sweeps that another launcher than ours runs, one job an arm: failing arms fail alone, a missing plugin is named."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from src.launch.slurm import Place, check_devices, join, place
from src.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "recipe.epochs=1",
    "data.clutter.train=128",
    "data.clutter.val=40",
    "data.clutter.test=40",
    "cam_pictures=0",
    "cam_scores=0",
]

# The command line of a study whose arms do what their seed says; `print` shows which ones had their turn.
TOY = """
import sys
from src.command import start
from src.messages import UserMistake

def run_all(configs):
    (config,) = configs
    print("turn", config.seed, flush=True)
    if config.seed == 1:
        raise UserMistake("seed=1 is no good, use another")
    if config.seed == 2:
        raise SystemExit(143)
    return [int(config.seed == 0)]

def preflight(configs):
    return [number for number, config in enumerate(configs) if config.seed != 5]

sys.exit(start(run_all, preflight))
"""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the root of the project."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


def test_a_job_that_fails_under_basic_fails_alone(tmp_path: Path) -> None:
    done = command("-c", TOY, "-m", "hydra/launcher=basic", "seed=0,1,5,3", f"outputs={tmp_path}")
    assert done.stdout.split() == ["turn", "0", "turn", "1", "turn", "3"]
    assert done.returncode == 1, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert told == ["error: the arm did not finish", "error: seed=1 is no good, use another"]


def test_a_job_that_is_ended_by_a_signal_ends_the_sweep(tmp_path: Path) -> None:
    done = command("-c", TOY, "-m", "hydra/launcher=basic", "seed=2,3", f"outputs={tmp_path}")
    assert done.stdout.split() == ["turn", "2"] and done.returncode == 143


def test_without_m_a_cluster_is_not_taken_for_this_machine(tmp_path: Path) -> None:
    """Hydra would leave the launcher aside and train at once on the machine where jobs are only submitted."""
    pytest.importorskip("submitit")
    done = command("-c", TOY, "hydra/launcher=slurm_gpu", f"outputs={tmp_path}")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip() == "error: hydra/launcher=slurm_gpu starts the arms of a sweep, add -m"


def test_basic_trains_what_finishes_and_reports_it(tmp_path: Path) -> None:
    """The first arm diverges, the second one finishes."""
    arms = "hydra.sweeper.arms=['scaling=depth recipe.learning_rate=1e30','scaling=base']"
    outputs = [f"outputs={tmp_path}", "study=tiny", "tracking=none", "hardware=cpu", "launcher=forked"]
    done = command("-m", "src.run", "-m", "hydra/launcher=basic", arms, *outputs, *TINY)
    assert done.returncode == 1, done.stderr
    states = {path.parent.name: json.loads(path.read_text())["state"] for path in tmp_path.glob("tiny/*/status.json")}
    assert {name.partition("-")[0]: state for name, state in states.items()} == {"depth": "failed", "base": "finished"}
    (record,) = map(RunRecord.read, tmp_path.glob("tiny/*/record.json"))
    assert record.arm == "base" and record.steps == 2
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    assert [run["arm"] for run in summary["runs"]] == ["base"]
    assert [arm["state"] for arm in summary["unfinished"]] == ["failed"]
    assert "training diverged" in done.stderr and "error: the arm did not finish" in done.stderr


@pytest.mark.parametrize("name", ["submitit_slurm", "slurm_gpu", "slurm_node", "slurm_nodes"])
def test_slurm_without_its_plugin_is_one_sentence(name: str) -> None:
    """The plugin is hidden, should it be installed: an entry of None in sys.modules cannot be imported."""
    hide = "import sys; sys.modules['hydra_plugins.hydra_submitit_launcher'] = None\n"
    done = command("-c", hide + TOY, "-m", f"hydra/launcher={name}", "seed=3")
    assert (done.returncode, done.stdout) == (2, "")
    needed = "needs submitit, install it with: python -m pip install -e '.[slurm]'"
    assert done.stderr.strip() == f"error: this hydra/launcher {needed}"


def test_outside_of_several_tasks_a_process_stands_on_one_node() -> None:
    batch = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    for environment in ({}, batch, {**batch, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}):
        assert place(environment) == Place(nodes=1, node=0)
    assert Place().environment() == {}


def test_a_task_of_several_nodes_knows_where_all_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n[ $2 = hostnames ] && printf 'n7\\nn9\\n' || echo NodeName=$4 NodeAddr=at-$4 Port=1\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[7,9]"}
    where = place({**step, "SLURM_JOB_ID": "24003", "SLURM_PROCID": "1"})
    assert where == Place(nodes=2, node=1, head="at-n7", port=20003)
    meeting = {"MASTER_ADDR": "at-n7", "MASTER_PORT": "20003"}
    assert where.environment() == {"NODE_RANK": "1", "SCALESTUDY_NODES": "2", **meeting}


def test_several_tasks_on_one_node_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4 tasks on 2 node.*tasks_per_node=1.*hardware\.devices"):
        place({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"})


def test_devices_must_spread_evenly_over_nodes() -> None:
    check_devices(8, Place(nodes=2))
    check_devices(1, Place())
    for devices, nearest in ((7, 6), (1, 2)):
        with pytest.raises(ValueError, match=f"hardware.devices={devices} .* use hardware.devices={nearest}$"):
            check_devices(devices, Place(nodes=2))


@pytest.mark.parametrize(("code", "told"), [(0, 0), (1, 1), (143, 0), (140, 0), (137, 137)])
def test_a_further_node_leaves_preemption_to_the_first(code: int, told: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first:
        where = Place(nodes=2, node=1, port=first.getsockname()[1])
        assert join([sys.executable, "-c", f"raise SystemExit({code})"], {}, where) == told
