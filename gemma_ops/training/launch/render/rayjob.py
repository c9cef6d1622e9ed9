"""A job for a Ray cluster that is running: the recipe's process on the head, its training on the cluster's GPUs."""

from __future__ import annotations

import json

from gemma_ops.training.launch.render.resources import Rendering


def ray(job: Rendering) -> str:
    """Return a script that submits the job; the working folder goes along, and keys are read on the cluster."""
    environment = {
        "working_dir": ".",
        "excludes": ["runs", "mlflow", ".venv", ".git"],
        "pip": [f"gemma-ops[ray,gpu]=={job.version}"],
        "env_vars": {"RAY_USAGE_STATS_ENABLED": "0"},
    }
    needed = [f"# Keys the cluster's machines must have in their environment: {', '.join(job.secrets)}"]
    workers = job.nodes * job.processes
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *[f"# {line}" for line in job.about()],
            (
                f"# The cluster needs {workers} GPU{'s' if workers > 1 else ''} of this kind free and, on every "
                f"machine, the same folder at `machine.runs`."
            ),
            *(needed if job.secrets else []),
            "set -euo pipefail",
            'ray job submit --address "${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}" \\',
            f"  --submission-id gemma-ops-{job.name} --entrypoint-num-cpus 2 \\",
            f"  --runtime-env-json '{json.dumps(environment)}' \\",
            f"  -- {job.train('ray')}",
            "",
        ]
    )
