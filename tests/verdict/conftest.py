"""The verdict's tests use the synthetic records of the report's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
