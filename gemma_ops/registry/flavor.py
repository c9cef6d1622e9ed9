"""The file `MLmodel`, by which `mlflow.pyfunc.load_model` and `mlflow models serve` load a version.

It names a module of this package as what loads the version, and no code of its own: nothing in a version is run,
neither a pickle nor a script. Fields: mlflow/pyfunc/__init__.py, "loader_module".
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

MLMODEL = "MLmodel"
LOADER = "gemma_ops.serving.pyfunc"
"""Module that loads a version; MLflow calls its `_load_pyfunc`."""
CONFIG: dict[str, Any] = {
    "format": "auto", "slots": 4, "context": 4096, "max_tokens": 1024, "canary": "required", "trusted_keys": [],
}  # fmt: skip
"""Settings of the loader (`model_config`) with their defaults: keys of `serve`, and `machine.trusted_keys`."""
PARAMS = {"max_tokens": "long", "temperature": "double", "top_p": "double", "seed": "long"}
"""Fields of OpenAI's chat completions that `predict` takes as `params`, with MLflow's types; MLflow drops all
others."""
_TYPE = "python_function"


def write_mlmodel(path: Path, name: str) -> None:
    """Write the file for a version of the registered model `name`."""
    flavor = {"loader_module": LOADER, "config": CONFIG}
    params = [{"name": param, "type": kind, "default": None, "shape": None} for param, kind in PARAMS.items()]
    body = {
        "flavors": {_TYPE: flavor}, "metadata": {"gemma_ops.name": name}, "mlflow_version": version("mlflow"),
        "signature": {"inputs": None, "outputs": None, "params": json.dumps(params)},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(body), encoding="utf-8")


def mlmodel_problem(path: Path) -> str | None:
    """Say why an `MLmodel` file would make MLflow run other code than this package; None where it doesn't."""
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
        flavors = dict(body["flavors"])
        flavor = dict(flavors.pop(_TYPE))
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return "it is no description of an MLflow model"
    if flavors or set(flavor) - {"loader_module", "config"} or flavor.get("loader_module") != LOADER:
        return f"it loads by other code than {LOADER}"
    return None


def mlflow_refusal(message: str) -> Exception:
    """Return the error that MLflow's scoring server reports as the client's (HTTP 400)."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    refusal: Exception = MlflowException(message, error_code=INVALID_PARAMETER_VALUE)
    return refusal
