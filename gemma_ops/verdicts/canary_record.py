"""`canary.json`: questions with what each model that may be served and its base said, which a server must answer before
it may serve."""

from __future__ import annotations

CANARY = "canary.json"
"""Name of the file, in the folder of the step `evaluate` and in a version; it holds questions, as the report does."""
CANARY_SCHEMA = "gemma-ops/canary@1"
