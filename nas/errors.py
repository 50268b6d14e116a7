"""Errors that a user can mend: each states the law, then the facts, the path and the remedy."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class NasError(Exception):
    """Root of all errors that the command line prints as one message (exit code 2, no traceback)."""


class SpaceError(NasError):
    """A space that cannot be searched, or an architecture that breaks one of its laws."""


class LayoutError(NasError):
    """A parameter that does not fit the stored tensor it would be cut from."""


class DataError(NasError):
    """Data that a task cannot use."""


class RunError(NasError):
    """A run directory, log or setting that does not fit what was asked."""


class DeviceError(NasError):
    """A device that cannot be timed, or a profile that does not fit it."""


class ExportError(NasError):
    """A subnet that cannot be exported, or an export that does not match its supernet."""


class TrackingError(NasError):
    """A tracking server that does not answer."""


def first_line(error: BaseException) -> str:
    """What an error says, on one line; what it is, where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))


def last_line(error: BaseException) -> str:
    """What an error says in the end, as errors of other processes do, which begin with where they were."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), repr(error)).strip()


@contextmanager
def errors_of_users(law: Callable[[], str]) -> Iterator[None]:
    """What fails in a user's code becomes a RunError: `law` (made only then, since that may take a while),
    where it came up, and what it was."""
    try:
        yield
    except NasError:
        raise
    except Exception as error:
        raise RunError(f"{law()}{_told(error)}") from error


def _told(error: Exception) -> str:
    """Where an error came up, by the innermost line that is no library's, and what it is."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    place = f", {own[-1].filename} line {own[-1].lineno}" if own else ""
    return f"{place}: {type(error).__name__}: {error}"
