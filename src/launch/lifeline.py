"""How an arm notices that its sweep is gone: the sweep holds one end of a pipe that the arm has as standard input.

A process that is killed (SIGKILL, out of memory) can tell nobody; the system closes its files all the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable

VARIABLE = "SCALESTUDY_LIFELINE"  # set for processes whose standard input is such a pipe

# Waits until group $1 is gone, for $2 tenths of a second at most and for $3 once its leader is; then what is left of it
# is killed. A process of its own, since the arm is gone before its workers are.
_LAST = """
n=0
while [ $n -lt $2 ] && kill -s 0 -- -$1; do
  kill -s 0 $1 || { [ $n -lt $(($2 - $3)) ] && n=$(($2 - $3)); }
  n=$((n + 1))
  sleep 0.1
done
kill -s KILL -- -$1
"""


def watch(on_loss: Callable[[], None], grace: float, leftover: float) -> None:
    """End this process when the sweep is gone: `on_loss`, SIGTERM, and SIGKILL for its group `grace` seconds later, or
    `leftover` seconds after the process itself has gone. Does nothing in a process that no sweep has started."""
    if os.environ.get(VARIABLE) != "1":
        return

    def wait() -> None:
        while os.read(0, 1):
            pass
        tenths = [str(round(10 * seconds)) for seconds in (grace, leftover)]
        subprocess.Popen(
            ["/bin/sh", "-c", _LAST, "sh", str(os.getpgrp()), *tenths],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        on_loss()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
