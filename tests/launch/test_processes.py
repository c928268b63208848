"""Arms as real processes: failures, signals, limits, slots. The children are tiny scripts without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import typing
from pathlib import Path
from typing import Any

import pytest

from src.arm_folder import ArmLock, holder, is_finished, is_locked, read_status, write_status
from src.launch import lifeline, processes, slots
from src.launch.options import LaunchOptions
from src.launch.processes import ArmJob, ArmOutcome, ArmStatus, exit_code, run_jobs
from src.launch.progress import make_display
from src.launch.slots import slot_environments
from src.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
WRITE_RECORD = "import os, shutil; shutil.copy(os.environ['GOOD_RECORD'], 'record.json')"


def good_record(folder: Path) -> Path:
    values: dict[type, Any] = {str: "x", int: 1, float: 0.5}
    fields = {name: values[kind] for name, kind in typing.get_type_hints(RunRecord).items()}
    record = RunRecord(**{**fields, "currency": "macs"})
    return record.write(folder)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sample").mkdir()
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(processes, "LEFTOVER_SECONDS", 0.5)
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
    assert (killed.state, killed.returncode) == ("interrupted", -9)
    assert "SIGKILL" in killed.reason and killed.log_tail == ("about to die",)
    assert torn.state == "failed" and "not a valid record" in torn.reason
    assert (good.state, good.returncode, good.reason, good.log_tail) == ("finished", 0, "", ())
    assert absent.state == "failed" and absent.returncode is None and "/no/such/program" in absent.reason
    assert exit_code(outcomes) == 1 and exit_code([good]) == 0
    assert [status(outcome)["state"] for outcome in outcomes] == [
        *["failed"] * 3, "interrupted", "failed", "finished", "failed",
    ]  # fmt: skip
    told = status(raises)
    assert told["returncode"] == 1 and told["arm"] == "raises" and "no such class" in told["error"]
    assert told["seconds"] > 0 and told["started"].endswith("+00:00") and status(good)["error"] is None


def test_old_record_does_not_count_but_stays_readable(tmp_path: Path, record: Path) -> None:
    job = make(tmp_path, "arm", "pass", record)
    job.folder.mkdir()
    old = good_record(job.folder).read_text()  # and no status.json: nobody saw how its attempt ended
    (outcome,) = run_jobs([job], LaunchOptions())
    assert outcome.state == "failed" and not (job.folder / "record.json").exists()
    assert (job.folder / "previous-record.json").read_text() == old


def test_finished_is_skipped_and_rerun_on_demand(tmp_path: Path, record: Path) -> None:
    folder, prepared = tmp_path / "arm", []
    assert not is_finished(folder)

    def again(**options: Any) -> tuple[str, str]:
        code = f"{WRITE_RECORD}; open('count', 'a').write('.')"
        (outcome,) = run_jobs([make(tmp_path, "arm", code, record, prepare=prepared.append)], LaunchOptions(**options))
        assert exit_code([outcome]) == 0
        return outcome.state, (folder / "count").read_text()

    assert again() == ("finished", ".")
    before = (folder / "status.json").read_text()
    assert again() == again(retry_failed=True) == ("skipped", ".")
    assert (folder / "status.json").read_text() == before
    assert again(rerun=True) == ("finished", "..")
    (folder / "record.json").write_text("{}")
    assert again() == ("finished", "...")
    assert prepared == [False, True, False] and json.loads((folder / "status.json").read_text())["attempt"] == 3


def test_what_failed_by_itself_waits_to_be_asked_and_what_was_ended_goes_on(tmp_path: Path, record: Path) -> None:
    once = "import signal\nif not os.path.exists('tried'): open('tried', 'w').close(); {end}\n" + WRITE_RECORD
    own = ("raise SystemExit(3)", "os._exit(0)", "os.kill(os.getpid(), signal.SIGSEGV)", "os.abort()")
    outside = ("os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "os._exit(143)", "os._exit(130)")
    jobs = [make(tmp_path, f"arm{n}", once.format(end=end), record) for n, end in enumerate((*own, *outside))]
    first = run_jobs(jobs, LaunchOptions(jobs=4))
    assert [outcome.state for outcome in first] == ["failed"] * 4 + ["interrupted"] * 4
    told = [(job.folder / "status.json").read_text() for job in jobs[:4]]
    second = run_jobs(jobs, LaunchOptions(jobs=4))
    assert [outcome.state for outcome in second] == ["failed"] * 4 + ["finished"] * 4
    assert all("failed before" in outcome.reason and "retry_failed=true" in outcome.reason for outcome in second[:4])
    assert "exit code 3" in second[0].reason and exit_code(second) == 1
    assert told == [(job.folder / "status.json").read_text() for job in jobs[:4]]
    third = run_jobs(jobs, LaunchOptions(jobs=4, retry_failed=True))
    assert [outcome.state for outcome in third] == ["finished"] * 4 + ["skipped"] * 4 and exit_code(third) == 0
    assert status(third[0])["attempt"] == 2


def test_an_arm_may_ask_for_one_more_start(tmp_path: Path, record: Path) -> None:
    ask = "open('again', 'w').write('it needs less memory'); open('count', 'a').write('.'); raise SystemExit(1)"
    stubborn = make(tmp_path, "stubborn", ask, record)
    once = make(tmp_path, "once", f"if os.path.exists('count'):\n {WRITE_RECORD}\nelse:\n {ask}", record)
    outcomes = run_jobs([stubborn, once], LaunchOptions(jobs=2))
    assert [outcome.state for outcome in outcomes] == ["failed", "finished"]
    assert (stubborn.folder / "count").read_text() == ".." and (once.folder / "count").read_text() == "."
    assert status(outcomes[1])["attempt"] == 2


def test_two_sweeps_share_the_arms(tmp_path: Path, record: Path) -> None:
    """The second sweep trains what the first leaves, waits for what it trains, and then takes its result."""
    code = f"import time; open('count', 'a').write('.'); time.sleep(0.6); {WRITE_RECORD}"
    jobs = [make(tmp_path, name, code, record) for name in "abc"]
    found: dict[str, list[ArmOutcome]] = {}
    waits: set[str] = set()

    def sweep(name: str) -> None:
        found[name] = run_jobs(jobs, LaunchOptions(), on_update=lambda all: waits.update(one.waits_for for one in all))

    others = [threading.Thread(target=sweep, args=(name,)) for name in ("one", "two")]
    for other in others:
        other.start()
    for other in others:
        other.join(timeout=20)
    states = [sorted((found["one"][n].state, found["two"][n].state)) for n in range(3)]
    assert states == [["finished", "skipped"]] * 3 and exit_code(found["one"]) == exit_code(found["two"]) == 0
    assert [(job.folder / "count").read_text() for job in jobs] == ["."] * 3
    assert any(str(os.getpid()) in text for text in waits)


def test_an_arm_is_locked_until_its_process_is_gone(tmp_path: Path, record: Path) -> None:
    """Also when the sweep is gone and the arm is not: the lock is the arm's as well."""
    folder = tmp_path / "arm"
    folder.mkdir()
    lock = ArmLock(folder)
    assert not is_locked(folder) and lock.acquire() and is_locked(folder) and not ArmLock(folder).acquire()
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fileno(),), text=True
    )
    lock.release()
    assert is_locked(folder) and str(os.getpid()) in holder(folder)
    write_status(folder, {"state": "running"})
    assert read_status(folder)["state"] == "running"
    child.communicate("\n")
    assert not is_locked(folder) and ArmLock(folder).acquire()


def test_a_state_that_cannot_be_true_is_not_believed(tmp_path: Path) -> None:
    write_status(tmp_path, {"state": "running", "attempt": 4})
    told = read_status(tmp_path)
    assert (told["state"], told["attempt"]) == ("interrupted", 4) and "killed" in told["error"]
    (tmp_path / "status.json").write_text("[1")
    assert read_status(tmp_path) == {}


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


def test_an_arm_is_asked_to_end_before_what_it_has_started(tmp_path: Path, record: Path) -> None:
    """It may still need it: W&B's service sends the last rows of a run that is stopped."""
    code = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
def leave(*_):
    time.sleep(0.3)
    open("found", "w").write(f"{child.pid} {child.poll()}")
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
time.sleep(60)
"""
    (outcome,) = run_jobs([make(tmp_path, "arm", code, record)], LaunchOptions(timeout_minutes=0.5 / 60))
    child, state = (tmp_path / "arm" / "found").read_text().split()
    assert outcome.state == "timeout" and state == "None" and not alive(int(child))


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
    monkeypatch.setattr(slots, "usable_cores", lambda: 7)
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


def test_processes_of_an_arm_share_its_threads_and_need_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "usable_cores", lambda: 9)
    assert [slot["OMP_NUM_THREADS"] for slot in slot_environments(LaunchOptions(jobs=2), {}, devices=2)] == ["2", "2"]
    with pytest.raises(ValueError, match=r"gpus_per_job=1 .* hardware.devices=2, use launcher.gpus_per_job=2"):
        slot_environments(LaunchOptions(gpus_per_job=1), {"CUDA_VISIBLE_DEVICES": "0,1"}, devices=2)


def test_a_forked_arm_is_a_process_like_any(tmp_path: Path, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forked_arm.py").write_text(
        "import os, shutil, signal, sys\n"
        "how, folder = sys.argv[1:]\n"
        "assert __name__ == '__main__' and os.getsid(0) == os.getpid() and os.environ['OWN'] == 'yes'\n"
        "print('said in', folder)\n"
        "how == 'killed' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "how == 'raises' and 1 / 0\n"
        "how == 'leaves' and sys.exit('with a word')\n"
        "shutil.copy(os.environ['GOOD_RECORD'], folder)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    jobs = [
        ArmJob(how, tmp_path / how, (sys.executable, "-m", "forked_arm", how, str(tmp_path / how)),
               {"GOOD_RECORD": str(record), "OWN": "yes"})
        for how in ("fine", "raises", "leaves", "killed")
    ]  # fmt: skip
    began, here = time.monotonic(), os.environ.copy()
    outcomes = run_jobs(jobs, LaunchOptions(start="fork", jobs=2))
    assert [outcome.state for outcome in outcomes] == ["finished", "failed", "failed", "interrupted"]
    assert outcomes[1].log_tail[-1] == "ZeroDivisionError: division by zero" and time.monotonic() - began < 5
    assert outcomes[2].log_tail[-1] == "with a word" and os.environ == here
    assert (tmp_path / "fine" / "console.log").read_text() == f"said in {tmp_path / 'fine'}\n"
    assert not any(is_locked(job.folder) for job in jobs)


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
processes.LEFTOVER_SECONDS = 0.5
folder = Path(sys.argv[1])
code = Path(sys.argv[2]).read_text()
start = f"import os; os.chdir({str(folder)!r}); os.chdir(%r)\\n"
jobs = [ArmJob(n, folder / n, (sys.executable, "-S", "-c", start % n + code)) for n in "abc"]
run_jobs(jobs, LaunchOptions(jobs=2))
"""


def parent_of(tmp_path: Path, code: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A sweep in a process of its own with two arms that run `code` (which sleeps), and the ids of all below it."""
    (tmp_path / "code.py").write_text(
        GRANDCHILD + "open('pid.tmp', 'w').write(str(os.getpid())); os.replace('pid.tmp', 'pid')\n" + code
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), str(tmp_path / "code.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = wait_for([tmp_path / arm / what for arm in "ab" for what in ("pid", "grandchild")])
    assert all(alive(pid) for pid in pids)
    return parent, pids


def test_arms_end_when_their_sweep_is_killed(tmp_path: Path) -> None:
    watch = f"sys.path.insert(0, {str(ROOT)!r})\nfrom src.launch import lifeline\n"
    lost = "lifeline.watch(lambda: open('lost', 'w').close(), 5.0, 0.5)\ntime.sleep(60)"
    parent, pids = parent_of(tmp_path, watch + lost)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)
    assert all((tmp_path / arm / "lost").exists() and not is_locked(tmp_path / arm) for arm in "ab")
    assert [read_status(tmp_path / arm)["state"] for arm in "abc"] == ["interrupted", "interrupted", "queued"]


def test_a_process_that_no_sweep_has_started_does_not_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(lifeline.VARIABLE, raising=False)
    before = threading.active_count()
    lifeline.watch(lambda: None, 0.0, 0.0)
    assert threading.active_count() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_parent_leaves_no_orphan(tmp_path: Path, number: signal.Signals) -> None:
    parent, pids = parent_of(tmp_path, "time.sleep(60)")
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
        ({"start": "forks"}, "launcher.start='forks' is unknown, did you mean fork"),
        ({"checkpoint_minutes": 0.0}, "launcher.checkpoint_minutes=0.0"),
        ({"progress": "bars"}, "launcher.progress='bars' is unknown, did you mean bar"),
    ],
)
def test_options_are_checked(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        LaunchOptions(**fields)
    assert text in str(caught.value) and "\n" not in str(caught.value)
