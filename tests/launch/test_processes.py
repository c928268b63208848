"""Arms as real processes: failures, signals, limits, slots. The children are tiny scripts without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path
from typing import Any

import pytest

from src.launch import processes
from src.launch.options import LaunchOptions
from src.launch.processes import ArmJob, ArmOutcome, ArmStatus, exit_code, finished, run_jobs, slot_environments
from src.launch.progress import make_display
from src.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
WRITE_RECORD = "import os, shutil; shutil.copy(os.environ['GOOD_RECORD'], 'record.json')"


def good_record(folder: Path) -> Path:
    values: dict[type, Any] = {str: "x", int: 1, float: 0.5}
    record = RunRecord(**{name: values[kind] for name, kind in typing.get_type_hints(RunRecord).items()})
    return record.write(folder)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sample").mkdir()
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    return good_record(tmp_path / "sample")


def make(folder: Path, name: str, code: str, record: Path, **fields: Any) -> ArmJob:
    """An arm that runs `code` inside its folder."""
    arm = folder / name
    code = f"import os; os.chdir({str(arm)!r})\n{code}"
    environment = {"GOOD_RECORD": str(record), **fields.pop("environment", {})}
    return ArmJob(name, arm, (sys.executable, "-S", "-c", code), environment, **fields)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_for(paths: list[Path], seconds: float = 10) -> list[int]:
    """Process ids that the arms wrote down."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(path.exists() and path.read_text() for path in paths):
            return [int(path.read_text()) for path in paths]
        time.sleep(0.02)
    raise AssertionError(f"{paths} did not appear")


def status(outcome: ArmOutcome) -> dict[str, Any]:
    return json.loads((outcome.folder / "status.json").read_text())


GRANDCHILD = """
import subprocess, sys, time, pathlib, signal, os
child = subprocess.Popen([sys.executable, "-S", "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"],
    stdout=subprocess.PIPE)
child.stdout.readline()
pathlib.Path("grandchild.tmp").write_text(str(child.pid)); os.replace("grandchild.tmp", "grandchild")
"""


def test_failures_are_reported_and_the_others_go_on(tmp_path: Path, record: Path) -> None:
    loud = "import sys\nfor i in range(40): print('line', i)\nsys.exit('budget is too small')"
    jobs = [
        make(tmp_path, "loud", loud, record),
        make(tmp_path, "raises", "raise ValueError('no such class')", record),
        make(tmp_path, "quiet", "pass", record),
        make(tmp_path, "killed", "print('about to die'); os.kill(os.getpid(), 9)", record),
        make(tmp_path, "torn", "open('record.json', 'w').write('{\"arm\":')", record),
        make(tmp_path, "good", WRITE_RECORD, record),
        ArmJob("absent", tmp_path / "absent", ("/no/such/program",)),
    ]
    outcomes = run_jobs(jobs, LaunchOptions(jobs=2))
    assert [outcome.name for outcome in outcomes] == [job.name for job in jobs]
    loud_, raises, quiet, killed, torn, good, absent = outcomes
    assert (loud_.state, loud_.returncode, loud_.log_tail[-1]) == ("failed", 1, "budget is too small")
    assert 10 <= len(loud_.log_tail) <= 20 and "exit code 1" in loud_.reason
    assert raises.log_tail[-1] == "ValueError: no such class"
    assert (quiet.state, quiet.returncode) == ("failed", 0) and "wrote no record.json" in quiet.reason
    assert (killed.state, killed.returncode) == ("failed", -9)
    assert "SIGKILL" in killed.reason and killed.log_tail == ("about to die",)
    assert torn.state == "failed" and "not a valid record" in torn.reason
    assert (good.state, good.returncode, good.reason, good.log_tail) == ("finished", 0, "", ())
    assert absent.state == "failed" and absent.returncode is None and "/no/such/program" in absent.reason
    assert exit_code(outcomes) == 1 and exit_code([good]) == 0
    assert [status(outcome)["state"] for outcome in outcomes] == ["failed"] * 5 + ["finished", "failed"]
    told = status(raises)
    assert told["returncode"] == 1 and told["arm"] == "raises" and "no such class" in told["error"]
    assert told["seconds"] > 0 and told["started"].endswith("+00:00") and status(good)["error"] is None


def test_old_record_does_not_count_but_stays_readable(tmp_path: Path, record: Path) -> None:
    job = make(tmp_path, "arm", "pass", record)
    job.folder.mkdir()
    old = good_record(job.folder).read_text()
    (outcome,) = run_jobs([job], LaunchOptions())
    assert outcome.state == "failed" and not (job.folder / "record.json").exists()
    assert (job.folder / "previous-record.json").read_text() == old


def test_finished_is_skipped_and_rerun_on_demand(tmp_path: Path, record: Path) -> None:
    code = f"{WRITE_RECORD}; open('count', 'a').write('.')"
    folder = tmp_path / "arm"
    assert not finished(folder)

    def again(**options: Any) -> tuple[str, str]:
        job = make(tmp_path, "arm", code, record, is_finished=finished(folder))
        (outcome,) = run_jobs([job], LaunchOptions(**options))
        assert exit_code([outcome]) == 0
        return outcome.state, (folder / "count").read_text()

    assert again() == ("finished", ".")
    before = (folder / "status.json").read_text()
    assert again() == ("skipped", ".")
    assert (folder / "status.json").read_text() == before
    assert again(rerun=True) == ("finished", "..")
    (folder / "record.json").write_text("{}")
    assert again() == ("finished", "...")


def test_failed_is_tried_again(tmp_path: Path, record: Path) -> None:
    assert run_jobs([make(tmp_path, "arm", "raise SystemExit(3)", record)], LaunchOptions())[0].state == "failed"
    assert not finished(tmp_path / "arm")


def test_on_failure_stop_starts_no_further_arm(tmp_path: Path, record: Path) -> None:
    jobs = [make(tmp_path, name, code, record) for name, code in (("a", "raise SystemExit(4)"), ("b", WRITE_RECORD))]
    outcomes = run_jobs(jobs, LaunchOptions(on_failure="stop"))
    assert [outcome.state for outcome in outcomes] == ["failed", "interrupted"]
    assert "a failed" in outcomes[1].reason and not (tmp_path / "b" / "console.log").exists()
    assert exit_code(outcomes) == 1


def test_timeout_ends_the_whole_group(tmp_path: Path, record: Path) -> None:
    slow = make(tmp_path, "slow", GRANDCHILD + "print('working', flush=True)\ntime.sleep(60)", record)
    began = time.monotonic()
    outcomes = run_jobs([slow, make(tmp_path, "next", WRITE_RECORD, record)], LaunchOptions(timeout_minutes=1 / 60))
    assert time.monotonic() - began < 15
    assert [outcome.state for outcome in outcomes] == ["timeout", "finished"]
    assert "timeout_minutes" in outcomes[0].reason and "working" in outcomes[0].log_tail
    assert not alive(int((tmp_path / "slow" / "grandchild").read_text()))


def test_grandchild_does_not_outlive_a_finished_arm(tmp_path: Path, record: Path) -> None:
    (outcome,) = run_jobs([make(tmp_path, "arm", GRANDCHILD + WRITE_RECORD, record)], LaunchOptions())
    assert outcome.state == "finished"
    assert not alive(int((tmp_path / "arm" / "grandchild").read_text()))


def test_slots_run_two_at_once_and_no_more(tmp_path: Path, record: Path) -> None:
    # Each of the first two waits for the other: with one slot neither could end.
    code = """
import pathlib, time
pathlib.Path("here").touch()
end = time.monotonic() + 10
while not pathlib.Path("../{other}/here").exists():
    assert time.monotonic() < end
    time.sleep(0.01)
"""
    jobs = [
        make(tmp_path, name, code.format(other=other) + WRITE_RECORD, record)
        for name, other in (("a", "b"), ("b", "a"), ("c", "a"), ("d", "c"))
    ]
    most = 0

    def watch(statuses: Any) -> None:
        nonlocal most
        most = max(most, sum(status.state == "running" for status in statuses))

    outcomes = run_jobs(jobs, LaunchOptions(jobs=2), on_update=watch)
    assert [outcome.state for outcome in outcomes] == ["finished"] * 4
    assert most == 2


def test_environment_of_an_arm(tmp_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in processes.RANK_VARIABLES:
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-7,6")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes, "usable_cores", lambda: 7)
    code = f"import json; json.dump(dict(os.environ), open('env', 'w')); {WRITE_RECORD}; import time; time.sleep(0.3)"
    jobs = [make(tmp_path, name, code, record, environment={"OWN": name}) for name in "ab"]
    assert exit_code(run_jobs(jobs, LaunchOptions(jobs=2, gpus_per_job=2))) == 0
    first, second = (json.loads((tmp_path / name / "env").read_text()) for name in "ab")
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("4,5", "GPU-7,6")
    assert (first["OWN"], second["OWN"]) == ("a", "b")
    assert first["OMP_NUM_THREADS"] == second["OMP_NUM_THREADS"] == "3"
    assert not set(processes.RANK_VARIABLES) & first.keys()


def test_slot_environments() -> None:
    options = LaunchOptions(jobs=2)
    assert (
        slot_environments(options, {"OMP_NUM_THREADS": "5", "GOMP_SPINCOUNT": "7"})
        == [{"OMP_NUM_THREADS": "5", "GOMP_SPINCOUNT": "7"}] * 2
    )
    assert "CUDA_VISIBLE_DEVICES" not in slot_environments(options, {"CUDA_VISIBLE_DEVICES": "0"})[0]
    for listed in ("", "-1", "0,-1,1"):
        with pytest.raises(ValueError, match=r"jobs=2 .*gpus_per_job=1 .*use launcher.jobs=1"):
            slot_environments(LaunchOptions(jobs=2, gpus_per_job=1), {"CUDA_VISIBLE_DEVICES": listed})
    slots = slot_environments(LaunchOptions(jobs=2, gpus_per_job=1), {"CUDA_VISIBLE_DEVICES": "3, 2"})
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3", "2"]


def test_shared_folder_is_refused(tmp_path: Path, record: Path) -> None:
    job = make(tmp_path, "a", "pass", record)
    with pytest.raises(ValueError, match="share the folder"):
        run_jobs([job, ArmJob("b", tmp_path / "x" / ".." / "a", job.command)], LaunchOptions())
    assert not job.folder.exists()


def test_error_in_the_display_leaves_no_process(tmp_path: Path, record: Path) -> None:
    job = make(tmp_path, "arm", "open('pid', 'w').write(str(os.getpid())); import time; time.sleep(60)", record)

    def broken(statuses: list[ArmStatus]) -> None:
        if (job.folder / "pid").exists() and statuses[0].state == "running":
            raise RuntimeError("broken display")

    with pytest.raises(RuntimeError, match="broken display"):
        run_jobs([job], LaunchOptions(), on_update=broken)
    assert not alive(int((job.folder / "pid").read_text()))


PARENT = """
import sys
from pathlib import Path
from src.launch import processes
from src.launch.options import LaunchOptions
from src.launch.processes import ArmJob, run_jobs
processes.GRACE_SECONDS = 1.0
folder = Path(sys.argv[1])
code = Path(sys.argv[2]).read_text()
start = f"import os; os.chdir({str(folder)!r}); os.chdir(%r)\\n"
jobs = [ArmJob(n, folder / n, (sys.executable, "-S", "-c", start % n + code)) for n in "abc"]
run_jobs(jobs, LaunchOptions(jobs=2))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_parent_leaves_no_orphan(tmp_path: Path, number: signal.Signals) -> None:
    code = tmp_path / "code.py"
    code.write_text(
        GRANDCHILD + "open('pid.tmp', 'w').write(str(os.getpid())); os.replace('pid.tmp', 'pid'); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), str(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = wait_for([tmp_path / arm / what for arm in "ab" for what in ("pid", "grandchild")])
    assert all(alive(pid) for pid in pids)
    parent.send_signal(number)
    _, err = parent.communicate(timeout=20)
    assert parent.returncode == 128 + number and "Traceback" not in err
    assert not any(alive(pid) for pid in pids)
    states = [json.loads((tmp_path / arm / "status.json").read_text()) for arm in "abc"]
    assert [state["state"] for state in states] == ["interrupted"] * 3
    assert number.name in states[0]["error"] and "not started" in states[2]["error"]


def test_interruption_carries_the_outcomes(tmp_path: Path, record: Path) -> None:
    jobs = [make(tmp_path, "a", WRITE_RECORD, record), make(tmp_path, "b", "import time; time.sleep(60)", record)]

    def interrupt(statuses: list[ArmStatus]) -> None:
        if [status.state for status in statuses] == ["finished", "running"]:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(processes.SweepInterrupted) as caught:
        run_jobs(jobs, LaunchOptions(), on_update=interrupt)
    assert caught.value.code == 130
    assert [outcome.state for outcome in caught.value.outcomes] == ["finished", "interrupted"]
    assert signal.getsignal(signal.SIGINT) is before


def test_console_tail_is_readable(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(b"x" * 50000 + b"\n\x1b[31mred\x1b[0m\n\n 1%\r 50%\r100%\n\xff end\n")
    assert processes.console_tail(tmp_path)[-3:] == ("red", "100%", "\ufffd end")
    assert processes.console_tail(tmp_path / "none") == ()


def test_lines_of_a_real_sweep_end_with_the_failure(
    tmp_path: Path, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        make(tmp_path, "bad", "raise ValueError('no such class')", record),
        make(tmp_path, "good", WRITE_RECORD, record),
    ]
    with make_display("auto", 1) as display:
        run_jobs(jobs, LaunchOptions(), on_update=display.update)
    err = capsys.readouterr().err
    assert "[1/2] bad  failed: exit code 1" in err and "[2/2] good  finished in" in err
    assert "    ValueError: no such class" in err and str(tmp_path / "bad" / "console.log") in err


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"jobs": 0}, "launcher.jobs=0"),
        ({"gpus_per_job": -1}, "launcher.gpus_per_job=-1"),
        ({"timeout_minutes": 0.0}, "launcher.timeout_minutes=0.0"),
        ({"timeout_minutes": float("nan")}, "launcher.timeout_minutes=nan"),
        ({"on_failure": "stopp"}, "launcher.on_failure='stopp' is unknown, did you mean stop"),
        ({"progress": "bars"}, "launcher.progress='bars' is unknown, did you mean bar"),
    ],
)
def test_options_are_checked(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        LaunchOptions(**fields)
    assert text in str(caught.value) and "\n" not in str(caught.value)
