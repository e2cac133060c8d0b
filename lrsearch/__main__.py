"""The `lrsearch` command, also as `python -m lrsearch`. What takes longest begins first, in a process of its own."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        if sys.argv[1:2] == ["run-study"]:
            _run_study()
        else:
            _run()
    except KeyboardInterrupt:  # while the command line was being imported
        sys.stderr.write("Stopped.\n")
        sys.exit(130)


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
