"""Settings for the whole suite, made before anything imports torch."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Tests run side by side on few cores: one thread each, and waiting threads sleep. Children inherit both.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Tests change HOME; matplotlib would look through all fonts of the machine each time.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))

# A shell starts background jobs with SIGINT ignored, nohup with SIGHUP, and what is ignored is inherited; the tests of
# ended sweeps need both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
