"""gemma-ops: fine-tune, check, version and promote Gemma 4 on your own machines."""

__version__ = "0.1.0"
