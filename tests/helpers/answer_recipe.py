"""The recipe of the tests that train by preferences and rewards: the shipped one up to its evaluation, without files
for serving."""

from gemma_ops.config import RunConfig
from gemma_ops.evaluation import evaluate
from gemma_ops.export import merge
from gemma_ops.modeling import fetch
from gemma_ops.modeling.checkpoint_source import local_base
from gemma_ops.prepare import prepare
from gemma_ops.recipes.inputs import every_task, rows_read, tasks
from gemma_ops.runs.run import Run
from gemma_ops.training import train


def recipe(run: Run, config: RunConfig):
    base = run.step(fetch, config.model, source=local_base(config.model.base))
    data = run.step(prepare, config.data, source=rows_read(config), model=base, tasks=every_task(config))
    adapter = run.step(train, config.train, base=base, data=data)
    merged = run.step(merge, config.merge, base=base, adapter=adapter, data=data)
    return run.step(evaluate, config.evaluate, base=base, tuned=merged, data=data, tasks=tasks(config))
