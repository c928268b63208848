"""Settings for the whole suite, made before anything imports torch."""

from __future__ import annotations

import os

# Tests run side by side on few cores: one thread each, and waiting threads sleep. Children inherit both.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
