"""gemma-ops: fine-tune, check, version and promote Gemma 4 on your own machines."""

import os

__version__ = "0.1.0"

# Before torch is imported: threads that spin while they wait take the cores from whatever else runs
# (modeling/threads.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if os.environ.get("GEMMA_OPS_OFFLINE"):  # here, so that every child process of ours is offline before it does anything
    from gemma_ops.offline import guard

    if guard.active():
        guard.enforce()
