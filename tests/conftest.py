"""Puts the repository's root on the path, so that tests can share contracts as `tests.<folder>.contract`."""

import signal
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent.parent))

# A shell starts background jobs with Ctrl-C ignored, and children inherit that; tests press it and expect an answer.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on what else the machine does.
settings.register_profile("lrsearch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lrsearch")
