"""A real SLURM of two nodes on this machine's loopback, for tests: `python tests/slurm/cluster.py run COMMAND...`.

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. `run` starts the cluster, runs the command
in its environment and takes the cluster down whatever happened; `up FOLDER` and `down FOLDER` do the same by hand. All
state lies in one folder, and `down` leaves neither a process nor a file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2")
MARK = "SCALESTUDY_SLURM"  # set in every task by the prolog, so that `down` finds what jobs leave behind
START_SECONDS = 60.0
STOP_SECONDS = 20.0

# Simple plugins instead of cgroups and accounting, which a container has not. A node has one "GPU", so that SLURM hands
# out CUDA_VISIBLE_DEVICES as it does for real ones. A requeued job waits until its credential has expired.
SLURM_CONF = """\
ClusterName=scalestudy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
TaskProlog={folder}/prolog
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
GresTypes=gpu
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
KillWait=15
MinJobAge=3600
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
{nodes}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 Gres=gpu:1"

# submitit asks `sacct -o JobID,State,NodeList --parsable2 -j ID ...`; without accounting slurmctld itself knows.
SACCT = """\
#!/bin/sh
echo 'JobID|State|NodeList'
scontrol -o show job 2>/dev/null | sed -nE '
  s/^JobId=[0-9]+ ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+) .*JobState=([A-Z_]+) .* NodeList=([^ ]*).*/\\1_\\2|\\3|\\4/p
  t
  s/^JobId=([0-9]+) .*JobState=([A-Z_]+) .* NodeList=([^ ]*).*/\\1|\\2|\\3/p'
"""


def missing() -> str:
    """Why no cluster can be started here, in one sentence; "" if one can."""
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=_search_path()) is None]
    if absent:
        packages = "slurmctld slurmd slurm-client munge"
        return f"{', '.join(absent)} not found: apt-get install --no-install-recommends {packages}"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root"


def environment(folder: Path) -> dict[str, str]:
    """What a process needs to reach the cluster of `folder`."""
    return {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}:{_search_path()}"}


def up(folder: Path) -> None:
    """Start the cluster and wait until its nodes take jobs.

    Raises:
        RuntimeError: it cannot be started here; says why.
    """
    if problem := missing():
        raise RuntimeError(problem)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # munge refuses a folder that not everybody may pass
    for name in ("bin", "state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports[1:], strict=True))
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, host=host, ports=ports, nodes=nodes))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    for name, text in (("prolog", f"#!/bin/sh\necho export {MARK}={folder}\n"), ("bin/sacct", SACCT)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    options = [f"--{option}={folder / name}" for option, name in {**files, "seed-file": "munge.seed"}.items()]
    _daemon(folder, "munged", "--foreground", "--force", *options)
    _wait(lambda: (folder / "munge.socket").exists(), START_SECONDS, folder)
    _daemon(folder, "slurmctld", "-D")
    for node in NODES:
        _daemon(folder, "slurmd", "-D", "-N", node)
    states = ("sinfo", "--noheader", "--Node", "--partition=debug", "--format=%T")
    _wait(lambda: _ask(folder, *states).split() == ["idle"] * len(NODES), START_SECONDS, folder)


def down(folder: Path, *, clients: bool = False) -> None:
    """End all jobs, then the daemons, then whatever jobs left behind, and remove the folder.

    With `clients` every process that was started in the cluster's environment is ended too.
    """
    if (folder / "slurm.conf").exists():
        _ask(folder, "scancel", "--full", "--signal=KILL", "--state=RUNNING")
        _ask(folder, "scancel", "--state=PENDING")
        deadline = time.monotonic() + STOP_SECONDS
        while _ask(folder, "squeue", "-h").strip() and time.monotonic() < deadline:
            _ask(folder, "scancel", "--user=root")
            time.sleep(0.2)
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS / 4
        while (left := _processes(folder, clients)) and time.monotonic() < deadline:
            for pid in left:
                _kill(pid, number)
            time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """A running cluster in a temporary folder; yields the environment that reaches it."""
    folder = Path(tempfile.mkdtemp(prefix="scalestudy-slurm-")).resolve()
    try:
        up(folder)
        yield environment(folder)
    finally:
        down(folder, clients=True)


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def _daemon(folder: Path, name: str, *arguments: str) -> None:
    program = shutil.which(name, path=_search_path())
    assert program is not None
    with (folder / f"{name}.out").open("ab") as output:
        subprocess.Popen(
            [program, *arguments],
            cwd=folder,
            env={**os.environ, **environment(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _ask(folder: Path, *command: str) -> str:
    """Standard output of one of SLURM's commands; "" if it fails or the controller does not answer."""
    surroundings = {**os.environ, **environment(folder)}
    try:
        return subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=10).stdout
    except subprocess.TimeoutExpired:
        return ""


def _wait(ready: Callable[[], bool], seconds: float, folder: Path) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.out")))
            raise RuntimeError(f"no SLURM after {seconds:.0f} s:\n{logs}")
        time.sleep(0.2)


def _processes(folder: Path, clients: bool) -> list[int]:
    """The cluster's daemons, every process that was started inside a job of it, and those started beside them."""
    conf, mark = f"SLURM_CONF={folder / 'slurm.conf'}".encode(), f"{MARK}={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            variables = (path / "environ").read_bytes().split(b"\0")
            name = (path / "comm").read_text().strip()
        except OSError:
            continue
        if mark in variables or (conf in variables and (clients or name.startswith(("munged", "slurm")))):
            found.append(int(path.name))
    return found


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """The command line; returns the exit code of the command that was run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("up", "down"):
        verbs.add_parser(verb).add_argument("folder", type=Path)
    verbs.add_parser("run").add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.verb == "up":
        up(options.folder.resolve())
        for key, value in environment(options.folder.resolve()).items():
            print(f"export {key}='{value}'")
        return 0
    if options.verb == "down":
        down(options.folder.resolve())
        return 0
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    with cluster() as surroundings:
        return subprocess.run(options.command, env={**os.environ, **surroundings}).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as problem:
        sys.exit(f"error: {problem}")
