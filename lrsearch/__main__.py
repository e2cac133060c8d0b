"""The `lrsearch` command, also as `python -m lrsearch`. What takes longest begins first, in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

STOPS = {"KeyboardInterrupt": signal.SIGINT, "Terminated": signal.SIGTERM}
"""The signals of what ends a command, by the exceptions that they raise."""
AGAIN_SECONDS = 0.01


def main() -> None:
    """Run the command line."""
    sys.unraisablehook = _stop_again
    _open_standard_streams()
    try:
        if sys.argv[1:2] == ["run-study"]:
            _run_study()
        else:
            _run()
    except KeyboardInterrupt:  # while the command line was being imported
        sys.stderr.write("Stopped.\n")
        sys.exit(130)


def _open_standard_streams() -> None:
    """Open those that we were started without, as by `2>&-`: else a file of ours has that number, and is written to."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115  # for ever


def _stop_again(unraisable: UnraisableHookArgs) -> None:
    """Send a signal once more that came where Python drops exceptions: in a weak reference's callback, in `__del__`."""
    number = STOPS.get(unraisable.exc_type.__name__)
    if number is None:
        sys.__unraisablehook__(unraisable)
    else:
        threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()


def _run_study() -> None:
    from lrsearch import ahead

    with ahead.ended_at_last():
        ahead.begin(ahead.glance(sys.argv[1:]))
        _run()


def _run() -> None:
    from lrsearch import cli  # which takes a tenth of a second

    cli.main()


if __name__ == "__main__":
    main()
