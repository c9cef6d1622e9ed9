"""MLflow's environment variables, set so that it stays quiet, bounded and on this machine."""

from __future__ import annotations

import os

# Read by MLflow 3.17 when it is imported or called. What the user has set stays.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",  # by default a download from the internet
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # seven by default: 4 min 13 s against a server that is down
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds without a byte, 120 by default
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",  # stdout carries results
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "true",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "true",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",  # else a server could have what it is sent carried on, with the credentials
}


def set_environment() -> None:
    """Put the profile into the environment. Must come before the first import of MLflow; safe to repeat."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
