"""No training: the stock model on your own suite, so that there is a number to beat.

Quantized formats named in `evaluate.targets` are made from the stock model and answer too.
"""

from gemma_ops.config import RunConfig
from gemma_ops.evaluation import evaluate
from gemma_ops.export import quantize
from gemma_ops.modeling import fetch
from gemma_ops.modeling.checkpoint_source import local_base
from gemma_ops.recipes.inputs import calibration, questions_read, tasks
from gemma_ops.runs.artifact import Artifact
from gemma_ops.runs.run import Run
from gemma_ops.targets.spec import QUANTIZED


def recipe(run: Run, config: RunConfig) -> Artifact:
    base = run.step(fetch, config.model, source=local_base(config.model.base))
    formats = [target for target in config.evaluate.targets if target in QUANTIZED]
    quantized = run.step(quantize, config.quantize, model=base) if formats else None
    return run.step(
        evaluate,
        config.evaluate,
        base=base,
        quantized=quantized,
        tasks=tasks(config),
        source=questions_read(config),
        calibration=calibration(config),
    )
