"""Finding and calling the user's functions; whatever goes wrong there names the user's file and line."""

from __future__ import annotations

import importlib
import os
import random
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrsearch.errors import LrsearchError, WorkloadError, did_you_mean, typed
from lrsearch.interfaces import CODE_COPY_VARIABLE

FOREIGN = tuple(
    os.path.realpath(folder) + os.sep
    for folder in (
        str(Path(__file__).parent.parent),
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
        *site.getsitepackages(),
    )
)
"""Folders of code that is not the user's own: lrsearch, Python, installed packages."""
_FROM_WORKER = re.compile(r"Caught .*\nOriginal Traceback \(most recent call last\):\n")
"""How the text of an exception begins that torch hands on from a DataLoader's worker."""
_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)


def resolve(role: str, reference: str, python_path: Path | None) -> Callable[..., Any]:
    """Return the function that `reference` (package.module:function) names. Raises WorkloadError when there is none."""
    module_name, path = reference.split(":")
    found: Any = _import(role, reference, module_name, python_path)
    for name in path.split("."):
        if not hasattr(found, name):
            known = [
                other for other in vars(found) if callable(getattr(found, other, None)) and not other.startswith("_")
            ]
            shown = sorted(known)[:10] + ["..."] * (len(known) > 10)
            raise WorkloadError(
                f"workload.{role} {reference!r}: {getattr(found, '__file__', module_name)} has no {name!r}; "
                f"it has {', '.join(shown) or 'no functions'}.{did_you_mean(name, known)}"
                f"{_hidden(module_name, python_path)}"
            )
        found = getattr(found, name)
    if not callable(found):
        raise WorkloadError(f"workload.{role} {reference!r} must be a function, got {typed(found)}.")
    return found  # type: ignore[no-any-return]  # a callable of the user's, of unknown signature


def _hidden(module_name: str, python_path: Path | None) -> str:
    """Return what to do where Python, or a package, has a module of the name that the user gave theirs."""
    file = getattr(sys.modules[module_name], "__file__", None)
    if file is None or os.path.realpath(file).startswith(FOREIGN):
        for folder in (python_path, Path.cwd()):
            own = None if folder is None else folder / f"{module_name.replace('.', '/')}.py"
            if own is not None and own.is_file() and (file is None or not own.samefile(file)):
                return f" {own} is hidden by that module of the same name: rename yours."
    return ""


def _import(role: str, reference: str, module_name: str, python_path: Path | None) -> Any:
    if python_path is not None and CODE_COPY_VARIABLE in os.environ:
        python_path = Path(os.environ[CODE_COPY_VARIABLE])
    if python_path is not None and not python_path.is_dir():
        raise WorkloadError(f"workload.python_path must be a folder, and {python_path} is none: correct or remove it.")
    folders = list(dict.fromkeys(os.path.abspath(folder) for folder in (python_path, Path.cwd()) if folder is not None))
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    if module_name not in sys.modules:
        importlib.invalidate_caches()
    try:
        with seeded():  # a module may draw the data
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _raised(f"workload.{role} {reference!r}: importing {module_name!r}", error) from error
        if module_name.endswith(".py"):
            named = reference.replace(".py:", ":")
            raise WorkloadError(
                f"workload.{role} {reference!r}: there is no module {module_name!r}: name the module without its .py, "
                f"as {named!r}."
            ) from error
        raise WorkloadError(
            f"workload.{role} {reference!r}: there is no module {error.name!r} in {' or '.join(folders)} nor among the "
            "installed packages: start lrsearch where the module lies, or set workload.python_path."
        ) from error
    except (Exception, SystemExit) as error:
        raise _raised(f"workload.{role} {reference!r}: importing {module_name!r}", error) from error


@contextmanager
def blamed_on(what: str) -> Iterator[None]:
    """Turn whatever the user's code raises inside into a WorkloadError that says so."""
    try:
        yield
    except WorkloadError:
        raise
    except (Exception, SystemExit) as error:
        raise _raised(what, error) from error


@contextmanager
def blamed_on_workload(name: str) -> Iterator[None]:
    """Turn whatever a workload raises inside, which has taken its first steps before, into a WorkloadError."""
    try:
        yield
    except LrsearchError:
        raise
    except (Exception, SystemExit) as error:
        raise WorkloadError(
            f"The workload {name!r} cannot take more than its first training steps: {words_of(error, 500)}"
            f"{user_line(error)}"
        ) from error


@contextmanager
def seeded() -> Iterator[None]:
    """Run with every global generator seeded with 0, and put them back as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    # What has not been used yet has no state to keep, and is not begun for that.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]  # torch's
    with torch.random.fork_rng(devices):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _raised(what: str, error: BaseException) -> WorkloadError:
    return WorkloadError(f"{what} raised {words_of(error, 300)}{user_line(error)}")


def words_of(error: BaseException, length: int) -> str:
    """Return type and text in one line; where a DataLoader's worker met the error, those that it had there."""
    name, text = type(error).__name__, str(error)
    if _FROM_WORKER.match(text) and (frames := list(_FRAME.finditer(text))):
        lines = text[frames[-1].end() :].splitlines()
        name, _, text = "\n".join(dropwhile(lambda line: line.startswith(" ") or not line, lines)).partition(": ")
    return f"{name.strip()}: {' '.join(text.split())[:length]}"


def user_line(error: BaseException) -> str:
    """Return " (file:line, in function)" for the innermost frame of the user's own code, or an empty string."""
    if isinstance(error, SyntaxError) and error.filename:  # one that torch hands on from a worker has none
        return f" ({error.filename}:{error.lineno})"
    frames = [(frame.filename, str(frame.lineno), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    if _FROM_WORKER.match(str(error)):
        frames += [(frame[1], frame[2], frame[3]) for frame in _FRAME.finditer(str(error))]
    own = [frame for frame in frames if not frame[0].startswith((*FOREIGN, "<"))]
    return " ({}:{}, in {})".format(*own[-1]) if own else ""
