"""Fine-tune Gemma 4 with LoRA or QLoRA, and prove it: the whole way from rows to a registered version.

`train.weights: nf4` makes it QLoRA; everything else is the same.
"""

from gemma_ops.config import RunConfig
from gemma_ops.drafting import draft
from gemma_ops.evaluation import evaluate
from gemma_ops.export import merge, quantize
from gemma_ops.modeling import fetch
from gemma_ops.modeling.checkpoint_source import local_base
from gemma_ops.modeling.drafter_files import stock_drafter
from gemma_ops.prepare import prepare
from gemma_ops.recipes.inputs import calibration, every_task, needs, questions_read, rows_read, tasks
from gemma_ops.registry import pull_champion, register
from gemma_ops.runs.artifact import Artifact
from gemma_ops.runs.run import Run
from gemma_ops.training import larger_model, train


def recipe(run: Run, config: RunConfig) -> Artifact:
    needs("xllamacpp", "gguf", "checking GGUF files")
    stock = stock_drafter(config.draft, config.model)
    base = run.step(fetch, config.model, source=local_base(config.model.base))
    data = run.step(prepare, config.data, source=rows_read(config), model=base, tasks=every_task(config))
    larger = larger_model(config.train)
    adapter = run.step(
        train,
        config.train,
        base=base,
        data=data,
        teacher=run.step(fetch, larger, name="teacher", source=local_base(larger.base)) if larger else None,
    )
    merged = run.step(merge, config.merge, base=base, adapter=adapter, data=data)
    quantized = run.step(quantize, config.quantize, model=merged, data=data)
    drafter = (
        run.step(
            draft,
            config.draft,
            model=merged,
            data=data,
            quantized=quantized,
            stock=run.step(fetch, stock, name="stock_drafter", source=local_base(stock.base)),
            tasks=tasks(config),
            source=questions_read(config),
        )
        if stock
        else None
    )
    champion = run.step(pull_champion, config.registered_model(), name="champion")
    evidence = run.step(
        evaluate,
        config.evaluate,
        base=base,
        tuned=merged,
        quantized=quantized,
        data=data,
        champion=champion,
        tasks=tasks(config),
        source=questions_read(config),
        calibration=calibration(config),
    )
    return run.step(
        register,
        config.registration(),
        model=base,
        data=data,
        adapter=adapter,
        merged=merged,
        quantized=quantized,
        drafter=drafter,
        evaluation=evidence,
    )
