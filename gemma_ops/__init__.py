"""gemma-ops: fine-tune, check, version and promote Gemma 4 on your own machines."""

import os

__version__ = "0.1.0"

if os.environ.get("GEMMA_OPS_OFFLINE"):  # here, so that every child process of ours is offline before it does anything
    from gemma_ops import offline

    if offline.active():
        offline.enforce()
