"""Webhooks of MLflow: whether a message comes from the server that knows our secret.

The signature is `v1,` and the base64 of an HMAC-SHA256 over delivery id, time stamp and body, joined by full stops
(mlflow/webhooks/delivery.py, MLflow 3.18).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import time
from collections.abc import Mapping

VARIABLE = "GEMMA_OPS_WEBHOOK_SECRET"
"""Environment variable that holds the secret that MLflow's webhook was made with."""
_AGE = 300
"""Seconds after which a message is too old to be accepted."""


def is_from_mlflow(headers: Mapping[str, str], body: bytes) -> bool:
    """True if a message is signed with the secret, and fresh. Without a secret no message is."""
    secret = os.environ.get(VARIABLE, "")
    number, stamp = headers.get("x-mlflow-delivery-id", ""), headers.get("x-mlflow-timestamp", "")
    if not (secret and stamp.isdigit() and abs(time.time() - int(stamp)) < _AGE):
        return False
    signed = f"{number}.{stamp}.".encode() + body
    made = base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
    return hmac.compare_digest(f"v1,{made}", headers.get("x-mlflow-signature", ""))
