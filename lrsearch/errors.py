"""The exceptions that lrsearch raises for reasons a user can mend, and the exit code of each.

    LrsearchError                 1   never raised itself
    +-- UsageError                2   a command line or a public function used wrongly
    |   +-- StudyFileError        2   a study file that breaks a rule; carries file:line:column
    |   +-- UnknownNameError      2   a name that no registry entry has
    |   +-- MissingExtraError     2   an optional package is not installed
    +-- DataError                 3   data missing, unreadable or corrupt
    +-- WorkloadError             3   the user's own model or data function is not usable
    +-- StorageError              4   the database or a file cannot be written or read
    |   +-- NewerSchemaError      4   the database was written by a newer lrsearch
    +-- StudyFailedError          5   the study stopped because its trials keep failing
    +-- StudyBusyError            6   another process runs this study, or has taken it over
    +-- StudyChangedError         7   the study file differs from the stored study
    +-- ClusterError              9   the Ray cluster cannot be joined, or has no room (left) for the study
    +-- WorkerDiedError           1   the process of a trial has died; the study loop repeats the trial
        +-- MachineLostError      1   the machine that it ran on does not answer
        +-- DeviceFaultError      1   its device failed, and no process that used it can go on

Every message says the rule, the value and the way out. A trial that diverges is a result, not an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LrsearchError(Exception):
    """Base of all errors that lrsearch raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(LrsearchError):
    """A command line or a public function was used wrongly."""

    exit_code = 2


class StudyFileError(UsageError):
    """A study file breaks a rule; the message starts with file:line:column."""


class UnknownNameError(UsageError):
    """A name that is in no registry; the message lists the known ones and the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(f"Unknown {kind} {name!r}; known: {', '.join(names)}.{did_you_mean(name, names)}")


class MissingExtraError(UsageError):
    """An optional package that this choice needs is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the {extra!r} extra: pip install 'lrsearch[{extra}]'.")


class DataError(LrsearchError):
    """Data are missing, unreadable or corrupt."""

    exit_code = 3


class WorkloadError(LrsearchError):
    """The user's own model or data function cannot be used as it is."""

    exit_code = 3


class StorageError(LrsearchError):
    """The database, a cache or a report cannot be written or read."""

    exit_code = 4


class NewerSchemaError(StorageError):
    """The database was written by a newer lrsearch."""


class StudyFailedError(LrsearchError):
    """The study stopped because its trials keep failing in the same way."""

    exit_code = 5


class StudyBusyError(LrsearchError):
    """Another process runs this study, or has taken it over from this one."""

    exit_code = 6
    holder = ""
    """That process in words, as far as it is known."""
    turn = 0
    """Which it is among all that have held the study, counted from 1."""


class StudyChangedError(LrsearchError):
    """The study file differs from the stored study of the same name."""

    exit_code = 7


class ClusterError(LrsearchError):
    """The cluster of machines cannot be joined, or has no room (left) for the study."""

    exit_code = 9


class WorkerDiedError(LrsearchError):
    """The process that ran a trial has died or was stopped as hung; the message says how, as in "its process ..."."""

    from_outside = False
    """Whether it was SIGKILL, which says less about the trial than a fault or an exit of its own."""


class DeviceFaultError(WorkerDiedError):
    """The device stopped at a fault, such as a kernel's assertion: for the process that used it there is no way on."""


class MachineLostError(WorkerDiedError):
    """The machine that a trial ran on does not answer, and what it still does counts no more."""

    from_outside = True

    def __init__(self, text: str, silent_seconds: float) -> None:
        super().__init__(text)
        self.silent_seconds = silent_seconds
        """How long ago it was last heard from."""


def typed(value: object) -> str:
    """Return what kind of thing the value is, with its article.

    >>> typed(3), typed("three")
    ('an int', 'a str')
    """
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to `name`, or an empty string."""
    names = list(known)
    nearest = [one for one in names if one.casefold() == name.casefold()] or difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
