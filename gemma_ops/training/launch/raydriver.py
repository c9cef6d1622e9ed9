"""The driver of a training under Ray: `python -m gemma_ops.training.launch.raydriver job.json`.

A process of its own, so that Ray's threads, sockets and output stay out of the run's. Without `launch.rendezvous` it
starts a Ray of its own on the loopback address, without dashboard or usage reports, which ends with it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from gemma_ops.training.launch import watch
from gemma_ops.training.launch.job import TrainingJob

_STORE = 80 << 20
"""Bytes of a local Ray's object store, the smallest it takes: nothing passes through it."""


def ray_main(arguments: list[str]) -> None:
    """Run the workers of a `job.json` to their end, replacing those that die."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from gemma_ops.modeling.load import pick_device

    job = TrainingJob.read(Path(arguments[0]))
    launch = job.machine.launch
    watch.watch(lambda: os.kill(os.getpid(), signal.SIGTERM))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that Ray is shut down on the way out
    gpu = pick_device(job.machine.device) == "cuda"
    workers = launch.processes * launch.nodes
    scratch = tempfile.TemporaryDirectory(prefix="gops-", ignore_cleanup_errors=True)  # short: it holds socket files
    try:
        if launch.rendezvous:
            ray.init(address=launch.rendezvous, log_to_driver=False, runtime_env={"env_vars": _carried()})
        else:
            ray.init(
                address="local",
                num_cpus=workers + 1,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=_STORE,
                _node_ip_address="127.0.0.1",
                _temp_dir=scratch.name,
            )
        trainer = TorchTrainer(
            _work,
            train_loop_config={"job": str(job.file)},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=3600),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, placement_strategy="PACK" if launch.nodes == 1 else "SPREAD"
            ),
            run_config=RunConfig(
                name="workers",
                storage_path=str(job.folder / "ray"),
                failure_config=FailureConfig(max_failures=launch.restarts),
            ),
        )
        trainer.fit()
    finally:
        ray.shutdown()
        scratch.cleanup()


def _carried() -> dict[str, str]:
    """Return the variables that workers on a cluster of somebody else's need as this process has them."""
    names = ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "GEMMA_OPS_OFFLINE", "HF_HUB_OFFLINE", "PYTHONPATH")
    return {name: os.environ[name] for name in names if name in os.environ}


def _work(config: dict[str, Any]) -> None:
    """Run the work of each of Ray's workers."""
    import ray.train

    from gemma_ops.training.launch import worker

    context = ray.train.get_context()
    rank = context.get_world_rank()
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    job = TrainingJob.read(Path(config["job"]))
    worker._to_log(job.log(rank))
    worker.run_worker(job, rank)


if __name__ == "__main__":
    ray_main(sys.argv[1:])
