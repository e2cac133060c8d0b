"""Puts the repository's root on the path, so that tests can share contracts as `tests.<folder>.contract`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
