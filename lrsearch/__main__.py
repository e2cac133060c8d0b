"""The `lrsearch` command, also as `python -m lrsearch`. What takes longest begins first, in a process of its own."""

from __future__ import annotations

import sys

from lrsearch import ahead


def main() -> None:
    """Run the command line."""
    with ahead.importing_torch():
        ahead.begin(ahead.glance(sys.argv[1:]))
        from lrsearch import cli  # which takes a tenth of a second

        cli.main()


if __name__ == "__main__":
    main()
