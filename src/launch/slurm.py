"""An arm on several nodes of a SLURM job: every task of the job starts its own node's share of the same arm.

SLURM starts the whole command once a node. All tasks plan, and so agree on the arm; the first one also shows, watches
and reports, the others only join. No signal needs to be passed on: SLURM sends each one to every process of a job. An
srun inside the job would do worse, since srun that is told to end kills its tasks before they can write a checkpoint
(measured with 22.05).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NODES = "SCALESTUDY_NODES"  # how many nodes an arm has, in the environment of its processes
WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # one of them comes before SLURM takes a node away

_JOIN_SECONDS = 1800.0  # as long as torch waits for the ranks of a group
_FIRST_PORT = 20000
_PORTS = 12000  # below the ports that Linux gives to outgoing connections, from 32768


@dataclass(frozen=True)
class Place:
    """Where this process stands in a job of `nodes` nodes; on the `port` of `head`, node 0, all meet."""

    nodes: int = 1
    node: int = 0
    head: str = "127.0.0.1"
    port: int = 0

    def environment(self) -> dict[str, str]:
        """What an arm's processes on this node need to find the others, by Lightning's names; nothing for one node."""
        if self.nodes == 1:
            return {}
        where = {"NODE_RANK": self.node, "MASTER_ADDR": self.head, "MASTER_PORT": self.port, NODES: self.nodes}
        return {key: str(value) for key, value in where.items()}


def place(environment: Mapping[str, str]) -> Place:
    """The place of the SLURM task with this environment; one node outside of SLURM, and in a batch script itself.

    Raises:
        ValueError: the job has several tasks on a node.
    """
    tasks, nodes = (int(environment.get(f"SLURM_STEP_NUM_{what}", "1")) for what in ("TASKS", "NODES"))
    if tasks == 1:
        return Place()
    if tasks != nodes:
        raise ValueError(
            f"this SLURM job has {tasks} tasks on {nodes} node(s), use hydra.launcher.tasks_per_node=1;"
            " hardware.devices says how many processes an arm has"
        )
    head = _ask("show", "hostnames", environment["SLURM_STEP_NODELIST"]).split()[0]
    found = re.search(r"\bNodeAddr=(\S+)", _ask("--oneliner", "show", "node", head))
    port = _FIRST_PORT + int(environment["SLURM_JOB_ID"]) % _PORTS
    return Place(nodes, int(environment["SLURM_PROCID"]), found[1] if found else head, port)


def check_devices(devices: int, where: Place) -> None:
    """Refuse an arm whose processes do not spread evenly over the nodes of its job.

    Raises:
        ValueError: they do not; names the nearest number that does.
    """
    if devices % where.nodes:
        raise ValueError(
            f"hardware.devices={devices} cannot be spread evenly over the {where.nodes} nodes of this job, use"
            f" hardware.devices={where.nodes * max(1, devices // where.nodes)}"
        )


def join(command: Sequence[str], environment: Mapping[str, str], where: Place) -> int:
    """Run the share of a node other than the first to its end; its output goes to this task's own log.

    It waits until the arm's first process listens, since what lies in the arm's folder is that one's to settle.

    Returns:
        Its exit code, and 0 where a warning of SLURM's ended it: what follows then is the first node's to decide, and a
        failing task could end the job before that.

    Raises:
        TimeoutError: nobody listened in time.
    """
    deadline = time.monotonic() + _JOIN_SECONDS
    while not _listens(where):
        if time.monotonic() > deadline:
            raise TimeoutError(f"node 0 ({where.head}) did not start the arm within {_JOIN_SECONDS:.0f} s, see its log")
        time.sleep(0.5)
    code = subprocess.run(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL).returncode
    return 0 if code in [128 + number for number in WARNINGS] else code


def _listens(where: Place) -> bool:
    try:
        socket.create_connection((where.head, where.port), timeout=5).close()
    except OSError:
        return False
    return True


def _ask(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout
