"""A study's log in MLflow: trials as steps of one run, the front as child runs.

The log of a run directory is the truth and MLflow a copy to look at. So a server that goes away
during a search costs the search nothing but a warning, and resuming fills in what MLflow lacks:
whoever resumes passes every trial again, and only steps after the last one in MLflow are sent.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

# Defaults, which the user's environment overrides. mlflow reads them on import and at each call.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # mlflow's own 7 wait for minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # ours are the only bars
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from nas.errors import TrackingError
from nas.outline import flatten, outline
from nas.tracking.reach import check_reachable, sqlite_path
from nas.tracking.records import KEY_LENGTH, entry_metrics, legal_key, param_texts, table_row
from nas.trial import Trial

Status = Literal["FINISHED", "FAILED", "KILLED"]

FLUSH_SECONDS = 1.5
RETRY_SECONDS = 30.0  # while a server is away: each attempt may block for a time-out
METRICS_PER_CALL = 1000  # MLflow's limit, as are the two below
PARAMS_PER_CALL = 100
TAG_LENGTH = 8000
TABLE = "trials.json"
ENTRY_TAG = "nas.entry"

logger = logging.getLogger(__name__)


class Tracker:
    """One MLflow run. Made by `Tracker.start`; `run_id` is what a later `start` resumes.

    Metrics are buffered and sent about every `FLUSH_SECONDS`, in order, so that what MLflow holds
    of each is always a prefix of what was passed. Only `start` raises for a server that is away.
    """

    def __init__(self, client: MlflowClient, run: Run, uri: str) -> None:
        """Follows `run` on `client`; use `Tracker.start`, which checks both."""
        self.run_id: str = run.info.run_id
        self.uri = uri
        self._client = client
        self._experiment_id: str = run.info.experiment_id
        self._buffer: list[Metric] = []
        self._next_flush = 0.0
        histories = {key: client.get_metric_history(self.run_id, key) for key in run.data.metrics}
        self._last_step = {key: max(m.step for m in history) for key, history in histories.items()}
        self._best = {key: max(m.value for m in history) for key, history in histories.items()}
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
            uri: ``sqlite:///runs/mlflow.db``, with artifacts beside it, or a server's address.
            params: settings, nested or flat; on resume, changed ones become tags ``resumed.NAME``,
                since MLflow's parameters are final.
            run_id: of the run to resume; one that MLflow no longer has is replaced by a new run.

        Raises:
            TrackingError: the database or the server cannot be used; within seconds.
        """
        check_reachable(uri)
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
        """Values of one step, as ``prefix/name``; steps that MLflow already has are left out."""
        now_ms = int(time.time() * 1000)
        for name, number in values.items():
            key = legal_key(f"{prefix}/{name}" if prefix else name)
            if step > self._last_step.get(key, -1):
                self._last_step[key] = step
                self._buffer.append(Metric(key, float(number), now_ms, step))
        if time.monotonic() >= self._next_flush:
            self._flush()

    def trial(self, trial: Trial, hypervolume: float | None) -> None:
        """A complete trial as step `trial.number` of ``SEARCH/accuracy``, ``SEARCH/…``."""
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
            rows = [table_row(t) for t in trials if (t.search, t.number) not in present]
            if rows:
                names = dict.fromkeys(name for row in rows for name in row)
                columns = {name: [row.get(name) for row in rows] for name in names}
                self._client.log_table(self.run_id, columns, TABLE)

    def child(self, entry: Mapping[str, Any]) -> None:
        """A front entry (one object of ``front.json``) as a child run, found again when it exists.

        Its numbers on the split *test* stay out: they belong to the report and the card alone.
        """
        params = {"id": entry["id"], **dict(flatten(entry["architecture"]))}
        tags = {
            "device": entry["device"],
            "mlflow.note.content": f"```\n{outline(entry['architecture'])}\n```"[:TAG_LENGTH],
        }
        name = f"{entry['device']}/{entry['id']}"
        self._child(name, entry["id"], params, entry_metrics(entry), tags)

    def configuration(self, number: int, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """A configuration that `nas tune` tried as a child run, found again when it exists."""
        self._child(f"tune/{number}", f"configuration {number}", settings, figures)

    def artifact(self, path: Path | str) -> None:
        """Stores a copy of the file (or directory) at `path` with the run."""
        with self._tolerated(f"the artifact {path}"):
            if Path(path).is_dir():
                self._client.log_artifacts(self.run_id, str(path), Path(path).name)
            else:
                self._client.log_artifact(self.run_id, str(path))

    def register(self, folder: Path, name: str, device: str, tags: Mapping[str, str]) -> str:
        """A folder with an MLflow model as a new version of the registered model `name`, which the alias of
        `device` then means. Returns the URI that serves it. What earlier versions are stays as it is.

        Raises:
            TrackingError: MLflow does not take it.
        """
        place, alias = f"models/{folder.parent.name}", _alias_of(device)
        legal = {legal_key(tag): text for tag, text in tags.items()}
        with _explained(self.uri):
            place += f"/{len(self._client.list_artifacts(self.run_id, place)) + 1}"
            self._client.log_artifacts(self.run_id, str(folder), place)
            source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{place}"
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            version = self._client.create_model_version(name, source, self.run_id, tags=legal).version
            self._client.set_registered_model_alias(name, alias, version)
        return f"models:/{name}@{alias}"

    def finish(self, status: Status = "FINISHED") -> None:
        """Sends what is buffered and ends the run."""
        self._flush()
        with self._tolerated("the end of the run"):
            self._client.set_terminated(self.run_id, status)

    def _flush(self) -> None:
        """Sends the buffer in order; what could not be sent stays in it for a later attempt."""
        self._next_flush = time.monotonic() + RETRY_SECONDS  # unless all goes well
        with self._tolerated("metrics"):
            while self._buffer:
                self._client.log_batch(self.run_id, metrics=self._buffer[:METRICS_PER_CALL])
                del self._buffer[:METRICS_PER_CALL]
            self._next_flush = time.monotonic() + FLUSH_SECONDS

    def _best_accuracy(self, search: str, accuracy: float) -> float:
        """The best accuracy of `search` so far, also if a resumed run is not shown old trials."""
        key = legal_key(f"{search}/best_accuracy")
        self._best[key] = max(self._best.get(key, accuracy), accuracy)
        return self._best[key]

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

    def _child(
        self,
        name: str,
        run_name: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        with self._tolerated(f"the child run {name}"):
            if self._children is None:
                self._children = self._existing_children()
            if name not in self._children:
                own = {MLFLOW_PARENT_RUN_ID: self.run_id, ENTRY_TAG: name}
                created = self._client.create_run(
                    self._experiment_id, tags={**own, **tags}, run_name=run_name
                )
                self._children[name] = created
            run = self._children[name]
            _log_params(self._client, run, params)
            self._log_changed(run, metrics)
            if run.info.status != "FINISHED":
                self._client.set_terminated(run.info.run_id)
            self._children[name] = self._client.get_run(run.info.run_id)

    def _log_changed(self, run: Run, values: Mapping[str, float]) -> None:
        """Logs what the child does not say yet: all of it at first, new measurements later."""
        now_ms = int(time.time() * 1000)
        known = run.data.metrics
        changed = [Metric(k, v, now_ms, 0) for k, v in values.items() if known.get(k) != v]
        if changed:
            self._client.log_batch(run.info.run_id, metrics=changed)

    @contextmanager
    def _tolerated(self, what: str) -> Iterator[None]:
        """Turns a server's failure into a warning: the log has it all, and a resume fills it in."""
        try:
            yield
        except (MlflowException, OSError) as error:
            logger.warning(
                "MLflow at %s did not take %s: %s. `--resume` sends what is missing.",
                self.uri, what, _first_line(error),
            )  # fmt: skip


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """mlflow's own errors as ours, with the uri."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"MLflow at {uri} must accept the run, but it refused: {_first_line(error)}. Check the "
            "uri, its credentials, and its version (`mlflow db upgrade` mends an older database)."
        ) from error


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith("sqlite:///"):
            location = (sqlite_path(uri).resolve().parent / "mlartifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"The MLflow experiment {name!r} must be active, but it was deleted at {uri}. Restore "
            f"it (`mlflow experiments restore -x {found.experiment_id}`) or choose another name."
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
    wanted = param_texts(params)
    known = run.data.params
    new = [Param(name, text) for name, text in wanted.items() if name not in known]
    for first in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run.info.run_id, params=new[first : first + PARAMS_PER_CALL])
    for name, text in wanted.items():
        if known.get(name, text) != text:
            client.set_tag(run.info.run_id, f"resumed.{name}"[:KEY_LENGTH], text[:TAG_LENGTH])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _quiet_migrations() -> None:
    """A fresh database is migrated step by step, which alembic reports in dozens of lines."""
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _alias_of(device: str) -> str:
    """The alias of a device: its name, but where MLflow keeps that for versions."""
    return f"device-{device}" if re.fullmatch(r"latest|v\d+", device, re.IGNORECASE) else device
