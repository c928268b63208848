"""Studies on a real SLURM: `make test-slurm` starts one on this machine, with two nodes, and takes it down."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.record import VOLATILE_FIELDS, RunRecord

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "data.clutter.train=128",
    "data.clutter.val=40",
    "data.clutter.test=40",
    "cam_pictures=0",
    "cam_scores=0",
    "tracking=none",
]
SMALL = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=10"]


def _no_cluster() -> str:
    if importlib.util.find_spec("submitit") is None:
        return "submitit is not installed"
    if "SLURM_CONF" not in os.environ or shutil.which("sinfo") is None:
        return "no SLURM runs here: make test-slurm starts one"
    return "" if _slurm("sinfo", "-h").strip() else "SLURM does not answer"


def _slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(_no_cluster()), reason=_no_cluster())]


@pytest.fixture(autouse=True)
def _no_jobs_left() -> Iterator[None]:
    yield
    _slurm("scancel", "--user", "root")
    wait_until(lambda: not _slurm("squeue", "-h").strip(), 60)


def start(*arguments: str, outputs: Path) -> subprocess.Popen[str]:
    """The command of a study; its output goes to a file beside the outputs."""
    outputs.mkdir(parents=True, exist_ok=True)
    with (outputs / "command.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "src.run", *arguments, f"outputs={outputs}"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
        )


def run(*arguments: str, outputs: Path) -> tuple[int, str]:
    """Exit code and output of the command of a study."""
    code = start(*arguments, outputs=outputs).wait(timeout=500)
    return code, (outputs / "command.log").read_text()


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, _slurm("scontrol", "-o", "show", "job")
        time.sleep(0.2)


def records(study: Path) -> dict[str, RunRecord]:
    """Records of a study by arm."""
    return {record.arm: record for record in map(RunRecord.read, sorted(study.glob("*/record.json")))}


def test_every_arm_is_a_job_of_its_own(tmp_path: Path) -> None:
    command = ("-m", "hydra/launcher=slurm_gpu", "scaling=base,depth", "study=s", "recipe.epochs=1", *SMALL, *TINY)
    code, log = run(*command, outputs=tmp_path)
    assert code == 0, log
    assert sorted(records(tmp_path / "s")) == ["base", "depth"]
    jobs = _slurm("scontrol", "-o", "show", "job").splitlines()[-2:]
    assert all("JobName=s " in job and "JobState=COMPLETED" in job and "gpu:1" in job for job in jobs)
    assert "2 of 2 arms to train" in log
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert sorted(run["arm"] for run in summary["runs"]) == ["base", "depth"]
    logs = [path.read_text() for path in tmp_path.glob("s/.submitit/*_*/*_log.err")]
    assert len(logs) == 2 and all("finished in" in text and "Traceback" not in text for text in logs)


def test_a_failing_arm_fails_alone_and_a_dry_run_submits_nothing(tmp_path: Path) -> None:
    arms = "hydra.sweeper.arms=['scaling=depth recipe.learning_rate=1e30','scaling=base']"
    command = ("-m", "hydra/launcher=slurm_gpu", arms, "study=f", "recipe.epochs=1", *SMALL, *TINY)
    before = _slurm("scontrol", "-o", "show", "job")
    code, log = run(*command, "dry_run=true", outputs=tmp_path)
    assert code == 0 and "nothing was trained" in log and not (tmp_path / "f").exists()
    assert _slurm("scontrol", "-o", "show", "job").count("JobId=") == before.count("JobId=")
    code, log = run(*command, outputs=tmp_path)
    assert code == 1 and "error: the arm did not finish" in log
    assert list(records(tmp_path / "f")) == ["base"]
    code, log = run("-m", "hydra/launcher=slurm_gpu", "scaling=base", *command[3:], outputs=tmp_path)
    assert code == 0 and "0 of 1 arms to train" in log


@pytest.mark.parametrize("how", ["time is up", "preempted"])
def test_an_arm_that_must_leave_goes_on_from_its_checkpoint(tmp_path: Path, how: str) -> None:
    """The two ways in which SLURM takes an arm's node away: with SIGUSR2 shortly before the job's time is up, after
    which submitit queues the job again; and with SIGTERM for a job of higher priority, after which SLURM does."""
    command = ("scaling=depth", "study=s", "recipe.epochs=24", *TINY, "hardware=cpu", "hardware.threads=1")
    whole = tmp_path / "whole"
    code, log = run(*command, outputs=whole)
    assert code == 0, log

    running = start("-m", "hydra/launcher=slurm_gpu", *SMALL, *command, outputs=tmp_path)
    wait_until(lambda: _epoch(tmp_path) >= 4, 120)
    (job,) = {line.split()[0] for line in _slurm("squeue", "-h", "-o", "%i", "--name=s").splitlines()}
    if how == "preempted":
        _slurm("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    else:
        _slurm("scancel", "--signal=USR2", job)
    left = _states(tmp_path, "interrupted")
    assert running.wait(timeout=300) == 0, (tmp_path / "command.log").read_text()

    assert left
    restarts = [line for line in _slurm("scontrol", "-o", "show", "job", job).split() if line.startswith("Restarts=")]
    assert restarts == ["Restarts=1"]
    one, two = (records(folder / "s")["depth"].to_mapping() for folder in (whole, tmp_path))
    assert {key for key in one if one[key] != two[key]} <= VOLATILE_FIELDS


def _epoch(outputs: Path) -> int:
    written = [json.loads(path.read_text()) for path in outputs.glob("s/*/progress.json")]
    return max((int(progress.get("epoch", 0)) for progress in written), default=0)


def _states(outputs: Path, awaited: str) -> bool:
    """Wait until an arm's status is `awaited`."""
    wait_until(lambda: any(json.loads(p.read_text())["state"] == awaited for p in outputs.glob("s/*/status.json")), 60)
    return True


@pytest.mark.parametrize("leaves", [False, True], ids=["", "and leaves"])
def test_one_arm_on_two_nodes(tmp_path: Path, leaves: bool) -> None:
    """Two nodes, a process each: the first one plans, watches and reports; both save and go on together."""
    nodes = ("hydra/launcher=slurm_nodes", "hydra.launcher.gpus_per_node=null", *SMALL)
    command = ("scaling=base", "study=s", "recipe.epochs=24", "hardware=cpu", "hardware.devices=2", *TINY)
    running = start("-m", *nodes, *command, outputs=tmp_path)
    if leaves:
        wait_until(lambda: _epoch(tmp_path) >= 3, 200)
        _slurm("scancel", "--signal=USR2", _slurm("squeue", "-h", "-o", "%i", "--name=s").strip())
    assert running.wait(timeout=400) == 0, (tmp_path / "command.log").read_text()
    (record,) = records(tmp_path / "s").values()
    assert (record.devices, record.steps, record.attempts) == (2, 48, 1 + leaves)
    job = _slurm("scontrol", "-o", "show", "job").splitlines()[-1]
    assert "NumNodes=2" in job and f"Restarts={int(leaves)} " in job
    assert ("goes on from" in (next(tmp_path.glob("s/*/console.log"))).read_text()) == leaves
    plans = [path.read_text().count("Study s: 1 arms") for path in sorted(tmp_path.glob("s/.submitit/*/*_log.err"))]
    assert plans == [1 + leaves, 0]


@pytest.mark.parametrize("ending", ["exit 3", "kill -TERM $PPID; sleep 60"])
def test_a_cluster_leaves_nothing_behind(ending: str) -> None:
    """A second cluster beside the first: no daemon, no file, no process in a session of its own."""
    job = "sbatch --output=/dev/null --wrap='setsid sleep 600 & sleep 600' >/dev/null; setsid sleep 600 &"
    script = f"echo $SLURM_CONF; {job} until squeue -h -t RUNNING | grep -q .; do sleep 0.2; done; {ending}"
    program = [sys.executable, str(ROOT / "tests" / "slurm" / "cluster.py"), "run", "sh", "-c", script]
    done = subprocess.run(program, capture_output=True, text=True, timeout=150)
    assert done.returncode == (3 if ending == "exit 3" else 143), done.stderr
    folder = Path(done.stdout.strip()).parent
    assert folder.name.startswith("scalestudy-slurm-") and not folder.exists()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            assert str(folder).encode() not in path.read_bytes(), path
        except OSError:
            continue
