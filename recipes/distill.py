"""A teacher writes rows from your documents, Gemma 4 learns them, and the result is proved and registered.

The teacher is a local Gemma 4 by default; `synth.teacher: gemini:MODEL` sends what may leave the machine, within a
budget.
"""

from gemma_ops.config import RunConfig
from gemma_ops.drafting import draft
from gemma_ops.evaluation import evaluate
from gemma_ops.export import merge, quantize
from gemma_ops.modeling import fetch
from gemma_ops.modeling.checkpoint_source import local_base
from gemma_ops.modeling.drafter_files import stock_drafter
from gemma_ops.prepare import prepare
from gemma_ops.recipes.inputs import calibration, every_task, needs, questions_read, tasks
from gemma_ops.registry import pull_champion, register
from gemma_ops.runs.artifact import Artifact
from gemma_ops.runs.run import Run
from gemma_ops.synth import synthesis_inputs, synthesize, teacher_model
from gemma_ops.training import train


def recipe(run: Run, config: RunConfig) -> Artifact:
    needs("xllamacpp", "gguf", "checking GGUF files")
    stock = stock_drafter(config.draft, config.model)
    base = run.step(fetch, config.model, source=local_base(config.model.base))
    other = teacher_model(config.synth)
    synthetic = run.step(
        synthesize,
        config.synth,
        base=base if "base" in (config.synth.teacher, config.synth.judge) else None,
        teacher=run.step(fetch, other, name="teacher", source=local_base(other.base)) if other else None,
        tasks=every_task(config),
        source=questions_read(config),
        **synthesis_inputs(config.synth),
    )
    rows = synthetic.path / "rows.jsonl"
    data = run.step(prepare, config.data, source=rows, model=base, tasks=every_task(config))
    adapter = run.step(train, config.train, base=base, data=data)
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
