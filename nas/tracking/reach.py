"""Whether a tracking uri can be used, found out within seconds and before any work is done."""

from __future__ import annotations

import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

from nas.errors import TrackingError

ANSWER_SECONDS = 4.0


def check_reachable(uri: str) -> None:
    """Raises TrackingError within seconds where mlflow would retry for minutes or fail obscurely.

    A server has to answer, a SQLite file to be writable (its directory is made). Other databases
    are left to mlflow; its plain file store, which it refuses by default, is refused here.
    """
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif uri.startswith("sqlite:///"):
        _check_sqlite(uri)
    elif "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"The tracking uri must name a database or a server, but got {uri!r}. "
            "Use sqlite:///runs/mlflow.db or the http(s) address of `mlflow server`."
        )


def _check_server(uri: str) -> None:
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers; whether it lets us in, the first request tells
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"The MLflow server must answer before a run starts, but {uri} did not within "
            f"{ANSWER_SECONDS:g} s ({error}). Start it (`mlflow server`), correct the uri, "
            "or track into a file: sqlite:///runs/mlflow.db."
        ) from None


def _check_sqlite(uri: str) -> None:
    path = sqlite_path(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=ANSWER_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # asks for the right to write, and writes nothing
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"The tracking database must be a SQLite file that can be written, but {uri} is not: "
            f"{error}. Choose a path in a directory of yours, such as sqlite:///runs/mlflow.db."
        ) from None


def sqlite_path(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])
