"""The MLflow server, database or folder of a configuration, and this process's connection to it.

`machine.mlflow` names a folder (one database and its artifacts, the default), a server, or a database. `locate` reads
that without importing MLflow; `connect` sets its environment, asks a server whether it is there, and opens a client.
"""

from __future__ import annotations

import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError, MachineError, OpsError, ServiceError
from gemma_ops.offline.addresses import database_hosts, is_loopback
from gemma_ops.registry import detours
from gemma_ops.registry.database import ensure
from gemma_ops.registry.mlflow_environment import set_environment

PROBE_SECONDS = 3.0
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_opening = threading.Lock()
_clients: dict[str, Any] = {}


@dataclass(frozen=True)
class TrackingPlace:
    """A tracking place: `uri` is what MLflow takes, `folder` where the database lies when it is a file on this
    machine."""

    kind: Literal["folder", "server", "database"]
    uri: str
    folder: Path | None

    @property
    def database(self) -> Path | None:
        """Return the sqlite file, if the place is one."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.folder else None

    @property
    def leaves_machine(self) -> bool:
        """True if what is written there goes to another host."""
        if self.folder is not None:
            return False
        if self.kind == "database":
            return bool(database_hosts(self.uri))
        return not is_loopback(urlsplit(self.uri).hostname or "elsewhere")


@dataclass(frozen=True)
class Tracking:
    """An open tracking place: the MLflow client bound to it and the experiment everything is filed under."""

    client: Any
    place: TrackingPlace
    experiment_id: str
    stores: str = ""
    """Store of its artifacts: a path or `file:` here, `mlflow-artifacts:` of the server, or one elsewhere (`s3:` …)."""

    @property
    def leaves_machine(self) -> bool:
        """True if what is filed here goes to another host, the database's or the store's."""
        scheme = urlsplit(self.stores).scheme
        return self.place.leaves_machine or scheme not in ("", "file", "mlflow-artifacts")


def locate_mlflow(machine: MachineConfig) -> TrackingPlace | None:
    """Read `machine.mlflow`; None when tracking is off. Raises ConfigError on what can't be a place."""
    given = machine.mlflow
    if given is None:
        return None
    if (
        "://" in given and urlsplit(given).password
    ):  # it would end up in config.json, in files of the run and in messages
        raise ConfigError(
            "machine.mlflow carries a password",
            "leave it out: a server takes MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD from the environment, "
            "PostgreSQL PGPASSWORD or ~/.pgpass, MySQL ?read_default_file=~/.my.cnf",
        )
    if re.match(r"https?://", given):
        return TrackingPlace("server", given.rstrip("/"), None)
    if "://" in given:
        return _database(given)
    folder = Path(given).expanduser().absolute()
    if folder.is_file():
        raise ConfigError(
            f"machine.mlflow is {given}, which is a file",
            f"give the folder that shall hold mlflow.db and the artifacts, or sqlite:///{folder} for this database",
        )
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return TrackingPlace("folder", uri, folder)


def _database(uri: str) -> TrackingPlace:
    if uri.split("://", 1)[0].split("+", 1)[0] not in _DATABASES:
        raise ConfigError(
            f"machine.mlflow is {uri}, which is neither a folder, a server nor a database",
            f"give a folder, http(s)://host:port, or one of {', '.join(_DATABASES)}://…",
        )
    folder = None
    if uri.startswith("sqlite:"):
        path = unquote(uri.split("://", 1)[1])[1:]
        if not path:
            raise ConfigError("machine.mlflow is a database in memory", "give a folder or sqlite:///file.db")
        folder = Path(path).absolute().parent
        uri = f"sqlite:///{Path(path).absolute()}"
    return TrackingPlace("database", uri, folder)


def probe_mlflow(place: TrackingPlace, seconds: float = PROBE_SECONDS) -> None:
    """Ask a server for `/health`; returns at once for a folder or database.

    Raises ServiceError within `seconds` when nobody answers, or when what answers is no MLflow server.
    """
    if place.kind != "server":
        return
    request = urllib.request.Request(f"{place.uri}/health")  # noqa: S310  http(s) only, see `locate`
    try:
        with detours.opener(proxies=place.leaves_machine).open(request, timeout=seconds) as answer:
            if answer.read(16).strip() == b"OK":
                return
        reason = "it is not an MLflow server"
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return  # it is there and asks who we are; the client sends the credentials of the environment
        reason = f"/health answered {error.code}"
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", error)
        reason = f"no answer in {seconds:.0f} s" if isinstance(cause, TimeoutError) else str(cause)
    raise unreachable(place, reason)


def unreachable(place: TrackingPlace, reason: str) -> ServiceError:
    """Return the error for a tracking place that doesn't answer, with the ways out."""
    return ServiceError(
        f"MLflow at {place.uri} can't be reached: {reason}",
        "start the server or correct the address, keep the records in a local folder with --set machine.mlflow=mlflow, "
        "or switch tracking off with --set machine.mlflow=null",
    )


def connect_mlflow(machine: MachineConfig) -> Tracking:
    """Open the place `machine.mlflow` names, making folder, database and experiment on first use.

    Importing MLflow costs about 2 s, a fresh database about 5 s more (in a child process, see `database.py`), later
    calls milliseconds. Raises ServiceError when a server is down, ConfigError when tracking is off or the experiment
    can't be used, MachineError when a folder can't be written or was moved.
    """
    place = locate_mlflow(machine)
    if place is None:
        raise ConfigError(
            "machine.mlflow is null: there is no registry",
            "set it to a folder or a server: --set machine.mlflow=mlflow",
        )
    if place.kind == "server" and not place.leaves_machine:
        detours.spare_proxies(urlsplit(place.uri).hostname or "")
    probe_mlflow(place)
    set_environment()
    with _opening, mlflow_calls(place):
        client = _clients.get(place.uri)
        if client is None:
            client = _clients[place.uri] = _open(place)
        import mlflow

        # Inside, MLflow looks a version's model up at its global address, whatever the client is bound to; unset, that
        # is a new database in the working folder.
        mlflow.set_tracking_uri(place.uri)
        mlflow.set_registry_uri(place.uri)
        number, stores = _experiment(client, place, machine.experiment)
        return Tracking(client, place, number, stores)


def _open(place: TrackingPlace) -> Any:
    if place.database:
        ensure(place.database)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(tracking_uri=place.uri, registry_uri=place.uri)
    except MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise
        raise MachineError(
            f"{place.uri} was made by another version of MLflow",
            f"back it up, then: mlflow db upgrade {place.uri}",
        ) from error
    except ModuleNotFoundError as error:
        raise MachineError(
            f"no driver for {place.uri}: {error.name} is missing", f"pip install {error.name}"
        ) from error


def _experiment(client: Any, place: TrackingPlace, name: str) -> tuple[str, str]:
    """Return the experiment's id and where its artifacts go."""
    found = client.get_experiment_by_name(name)
    home = place.folder / "artifacts" if place.folder else None
    if found is None:
        if place.kind == "database" and home is None:
            raise ConfigError(
                f"{place.uri} has no experiment {name!r}, and a bare database doesn't say where artifacts go",
                f"make it once: mlflow experiments create -n {name} -l s3://bucket/path (or any store all "
                f"machines reach)",
            )
        # The kind decides which side of MLflow's pages opens: runs and metrics here, traces and judges otherwise.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        location = home.as_uri() if home else None
        number = str(client.create_experiment(name, artifact_location=location, tags=kind))
        return number, location or str(client.get_experiment(number).artifact_location)
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"the MLflow experiment {name!r} was deleted",
            f"restore it (mlflow experiments restore -x {found.experiment_id}) or use another: --set "
            f"machine.experiment=…",
        )
    if place.kind == "folder" and home and found.artifact_location != home.as_uri():
        # MLflow stores absolute addresses: after a move it would write where the folder used to be.
        raise MachineError(
            f"{place.folder} was moved: its records point at {unquote(urlsplit(found.artifact_location).path)}",
            "move it back, or put a symbolic link to it there and set machine.mlflow to the link",
        )
    return str(found.experiment_id), str(found.artifact_location)


@contextmanager
def mlflow_calls(place: TrackingPlace) -> Iterator[None]:
    """Turn what MLflow raises for a server that went away, or that refuses us, into ServiceError; the rest passes."""
    try:
        yield
    except OpsError:
        raise
    except Exception as error:
        reason = outage(error)
        if reason is None:
            raise
        raise unreachable(place, reason) from error


def outage(error: BaseException) -> str | None:
    """Return why this exception of MLflow's means that the place doesn't serve us; None when it means something
    else."""
    import requests
    from mlflow.exceptions import MlflowException

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, requests.exceptions.RequestException):
            response = getattr(cause, "response", None)
            if response is None:
                return _innermost(cause)
            if response.status_code in (401, 403):
                code = response.status_code
                return f"it answered {code}: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            if response.status_code >= 500 or 300 <= response.status_code < 400:
                return f"it answered {response.status_code}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, MlflowException):
        text = str(error)
        if "failed with error code 403" in text:
            return "it answered 403: this user may not do that (MLFLOW_TRACKING_USERNAME)"
        if "API request to" in text or "TEMPORARILY_UNAVAILABLE" in text or "database is locked" in text:
            return text.splitlines()[0][:200]
        status = re.search(r"failed with error code (3\d\d|401|403|5\d\d)", text)
        return f"it answered {status.group(1)}" if status else None
    return None


def _innermost(error: BaseException) -> str:
    text = str(error)
    for known in ("Connection refused", "Name or service not known", "Read timed out", "Connection reset by peer"):
        if known in text:
            return known.lower()
    return text.splitlines()[0][:200]
