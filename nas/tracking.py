"""A study's log in MLflow: trials as steps of one run, the front as child runs.

The log of a run directory is the truth and MLflow a copy to look at. So a server that goes away during a
search costs the search nothing but a warning, and resuming fills in what MLflow lacks: whoever resumes
passes every trial again, and only the steps after the last one in MLflow are sent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import re
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

# Defaults that the user's own environment overrides; mlflow reads them when it is imported and at each call.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # mlflow's own 7 wait for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from nas.architecture import to_json
from nas.errors import TrackingError
from nas.outline import flatten, outline
from nas.trial import Trial

Status = Literal["FINISHED", "FAILED", "KILLED"]

FLUSH_SECONDS = 1.5
RETRY_SECONDS = 30.0  # between attempts to reach a server that went away: each may block for a time-out
ANSWER_SECONDS = 4.0
METRICS_PER_CALL = 1000  # MLflow's limit, as are the four below
PARAMS_PER_CALL = 100
KEY_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
TABLE = "trials.json"
ENTRY_TAG = "nas.entry"

logger = logging.getLogger(__name__)


class Tracker:
    """One MLflow run. Made by `Tracker.start`; `run_id` is what a later `start` resumes.

    Metrics are buffered and sent about every `FLUSH_SECONDS`, in the order of their steps, so that what
    MLflow holds is always a prefix of what was passed. No call but `start` raises for a server that is away.
    """

    def __init__(self, client: MlflowClient, run: Run, uri: str) -> None:
        """Follows `run` on `client`; use `Tracker.start`, which checks both."""
        self.run_id: str = run.info.run_id
        self.uri = uri
        self._client = client
        self._experiment_id: str = run.info.experiment_id
        self._buffer: list[Metric] = []
        self._next_flush = 0.0
        self._stored = set(run.data.metrics)  # names with a history that was not read yet
        self._last_step: dict[str, int] = {}
        self._best: dict[str, float] = {}
        self._children: dict[str, Run] | None = None

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        run_id: str | None = None,
    ) -> Tracker:
        """A new run, or the run `run_id` again, its status back to RUNNING.

        Args:
            uri: ``sqlite:///runs/mlflow.db`` (artifacts are stored beside it) or a server's http(s) address.
            params: settings, nested or flat; on resume, changed ones become tags ``resumed.NAME``, since
                MLflow's parameters are final.
            run_id: of the run to resume; one that MLflow no longer has is replaced by a new run.

        Raises:
            TrackingError: the database or the server cannot be used; at once, not after mlflow's retries.
        """
        _check_reachable(uri)
        _quiet_migrations()
        with _explained(uri):
            client = MlflowClient(tracking_uri=uri)
            run = _existing_run(client, run_id) if run_id else None
            if run is None:
                run = client.create_run(_experiment_id(client, experiment, uri), run_name=run_name)
            else:
                client.update_run(run.info.run_id, status="RUNNING")
            _log_params(client, run, params)
        return cls(client, run, uri)

    def metrics(self, step: int, values: Mapping[str, float], prefix: str = "") -> None:
        """Values of one step, as ``prefix/name``. Steps that MLflow already has are not sent again."""
        now_ms = int(time.time() * 1000)
        for name, number in values.items():
            key = _key(f"{prefix}/{name}" if prefix else name)
            if step > self._last(key):
                self._last_step[key] = step
                self._buffer.append(Metric(key, float(number), now_ms, step))
        if len(self._buffer) >= METRICS_PER_CALL or time.monotonic() >= self._next_flush:
            self._flush()

    def trial(self, trial: Trial, hypervolume: float | None) -> None:
        """A complete trial as step `trial.number` of its search: objectives, hypervolume, best accuracy."""
        if trial.state != "complete":
            return
        values = dict(trial.objectives)
        if hypervolume is not None:
            values["hypervolume"] = hypervolume
        if "accuracy" in values:
            values["best_accuracy"] = self._best_accuracy(trial.search, values["accuracy"])
        self.metrics(trial.number, values, prefix=trial.search)

    def table(self, trials: Sequence[Trial]) -> None:
        """All trials as one table artifact; on resume only the rows that it lacks are appended."""
        with self._tolerated("the table of trials"):
            present = self._rows()
            rows = [_row(t) for t in trials if (t.search, t.number) not in present]
            if rows:
                names = dict.fromkeys(name for row in rows for name in row)
                columns = {name: [row.get(name) for row in rows] for name in names}
                self._client.log_table(self.run_id, columns, TABLE)

    def child(self, entry: Mapping[str, Any]) -> None:
        """A front entry (one object of ``front.json``) as a child run, found again when it exists.

        Its numbers on the split *test* stay out: they belong to the report and the card alone.
        """
        name = f"{entry['device']}/{entry['id']}"
        with self._tolerated(f"the child run {name}"):
            if self._children is None:
                self._children = self._existing_children()
            run = self._children.get(name) or self._create_child(name, entry)
            self._children[name] = run
            _log_params(self._client, run, {"id": entry["id"]} | dict(flatten(entry["architecture"])))
            self._log_changed(run, _entry_metrics(entry))
            self._client.set_terminated(run.info.run_id)

    def artifact(self, path: Path | str) -> None:
        """Stores a copy of the file (or directory) at `path` with the run."""
        with self._tolerated(f"the artifact {path}"):
            if Path(path).is_dir():
                self._client.log_artifacts(self.run_id, str(path), Path(path).name)
            else:
                self._client.log_artifact(self.run_id, str(path))

    def finish(self, status: Status = "FINISHED") -> None:
        """Sends what is buffered and ends the run."""
        self._flush()
        with self._tolerated("the end of the run"):
            self._client.set_terminated(self.run_id, status)

    def _flush(self) -> None:
        """Sends the buffer in order; what could not be sent stays in it for a later attempt."""
        self._next_flush = time.monotonic() + FLUSH_SECONDS
        with self._tolerated("metrics"):
            while self._buffer:
                self._client.log_batch(self.run_id, metrics=self._buffer[:METRICS_PER_CALL])
                del self._buffer[:METRICS_PER_CALL]
            return
        self._next_flush = time.monotonic() + RETRY_SECONDS

    def _last(self, key: str) -> int:
        """The last step of `key` that was passed, by this process or by one before it; −1 for none."""
        if key not in self._last_step:
            history = self._history(key)
            self._last_step[key] = max((m.step for m in history), default=-1)
        return self._last_step[key]

    def _best_accuracy(self, search: str, accuracy: float) -> float:
        """The best accuracy of `search` so far, also where a resumed run is not shown its first trials."""
        if search not in self._best:
            history = self._history(_key(f"{search}/best_accuracy"))
            self._best[search] = max((m.value for m in history), default=accuracy)
        self._best[search] = max(self._best[search], accuracy)
        return self._best[search]

    def _history(self, key: str) -> list[Metric]:
        if key not in self._stored:
            return []
        with self._tolerated(f"reading {key}"):
            return list(self._client.get_metric_history(self.run_id, key))
        return []

    def _rows(self) -> set[tuple[str, int]]:
        """(search, number) of the trials that the stored table holds."""
        if TABLE not in [f.path for f in self._client.list_artifacts(self.run_id)]:
            return set()
        table = json.loads(Path(self._client.download_artifacts(self.run_id, TABLE)).read_text())
        search, number = table["columns"].index("search"), table["columns"].index("number")
        return {(row[search], row[number]) for row in table["data"]}

    def _existing_children(self) -> dict[str, Run]:
        """Child runs by the name in their tag."""
        ours = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'"
        runs = self._client.search_runs([self._experiment_id], ours)
        return {run.data.tags[ENTRY_TAG]: run for run in runs if ENTRY_TAG in run.data.tags}

    def _create_child(self, name: str, entry: Mapping[str, Any]) -> Run:
        tags = {
            MLFLOW_PARENT_RUN_ID: self.run_id,
            ENTRY_TAG: name,
            "device": entry["device"],
            "mlflow.note.content": f"```\n{outline(entry['architecture'])}\n```"[:TAG_LENGTH],
        }
        return self._client.create_run(self._experiment_id, tags=tags, run_name=entry["id"])

    def _log_changed(self, run: Run, values: Mapping[str, float]) -> None:
        """Logs what the child does not say yet: all of it at first, new measurements later."""
        now_ms = int(time.time() * 1000)
        known = run.data.metrics
        changed = [Metric(k, v, now_ms, 0) for k, v in values.items() if known.get(k) != v]
        if changed:
            self._client.log_batch(run.info.run_id, metrics=changed)

    @contextmanager
    def _tolerated(self, what: str) -> Iterator[None]:
        """Turns a server's failure into a warning: the log has everything, and a resume fills it in."""
        try:
            yield
        except (MlflowException, OSError) as error:
            logger.warning(
                "MLflow at %s did not take %s: %s. The log has it; `--resume` sends it again.",
                self.uri, what, _first_line(error),
            )  # fmt: skip


def _check_reachable(uri: str) -> None:
    """Raises TrackingError within seconds where mlflow would retry for minutes, or fail obscurely."""
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
    path = _sqlite_path(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 0" if not path.stat().st_size else "PRAGMA schema_version")
    except (OSError, sqlite3.Error) as error:
        raise TrackingError(
            f"The tracking database must be a SQLite file that can be written, but {uri} is not: {error}. "
            "Choose a path in a directory of yours, such as sqlite:///runs/mlflow.db."
        ) from None


def _sqlite_path(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """mlflow's own errors as ours, with the uri."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"MLflow at {uri} must accept the run, but it refused: {_first_line(error)}. Check the uri, its "
            "credentials, and that its version fits (`mlflow db upgrade` for an older database)."
        ) from error


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith("sqlite:///"):
            location = (_sqlite_path(uri).resolve().parent / "mlartifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"The MLflow experiment {name!r} must be active, but it was deleted at {uri}. Restore it "
            f"(`mlflow experiments restore -x {found.experiment_id}`) or choose another name."
        )
    return str(found.experiment_id)


def _existing_run(client: MlflowClient, run_id: str) -> Run | None:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None
    if run is None or run.info.lifecycle_stage == "deleted":
        logger.warning("MLflow no longer has the run %s; a new one is filled from the log.", run_id)
        return None
    return run


def _log_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> None:
    """Logs the parameters that `run` lacks; those that changed since become tags."""
    wanted = {_key(name): _shortened(text, PARAM_LENGTH) for name, text in flatten(_plain(params))}
    known = run.data.params
    new = [Param(name, text) for name, text in wanted.items() if name not in known]
    for first in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run.info.run_id, params=new[first : first + PARAMS_PER_CALL])
    for name, text in wanted.items():
        if known.get(name, text) != text:
            client.set_tag(run.info.run_id, f"resumed.{name}"[:KEY_LENGTH], text[:TAG_LENGTH])


def _plain(value: Any) -> Any:
    """Mappings as they are, all else as a leaf: a list of settings is read best as one parameter."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value)


def _entry_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """``accuracy/measured``, ``latency_ms.pi4/predicted``, …: every number of an entry's objectives."""
    numbers = {
        _key(f"{objective}/{kind}"): number
        for objective, kinds in entry["objectives"].items()
        for kind, number in kinds.items()
    }
    return {key: float(n) for key, n in numbers.items() if isinstance(n, (int, float))}


def _row(trial: Trial) -> dict[str, Any]:
    """A trial as a line of the table."""
    return {
        "search": trial.search,
        "number": trial.number,
        "id": trial.id,
        "state": trial.state,
        "rung": trial.rung,
        **trial.objectives,
        "n": trial.n,
        "std_error": trial.std_error,
        "evaluated": trial.evaluated,
        "error": trial.error,
        "architecture": json.dumps(to_json(trial.architecture)),
    }


def _key(name: str) -> str:
    """`name` as MLflow allows it: letters, digits, ``_-. /``, a normal path, at most 250 characters."""
    legal = re.sub(r"[^\w.\- /]", "_", name, flags=re.ASCII)
    normal = posixpath.normpath(legal.replace("..", "__")).strip("/")
    return _shortened(normal if normal not in ("", ".") else "_", KEY_LENGTH)


def _shortened(text: str, length: int) -> str:
    """`text`, or its beginning and a hash of the whole, so that long values that differ stay different."""
    if len(text) <= length:
        return text
    return f"{text[: length - 13]}.{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _quiet_migrations() -> None:
    """A fresh database is migrated step by step, which alembic reports in dozens of lines."""
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
