"""Judges: models that compare answers where no metric can, and everything that says how far to believe them.

protocol, rubric, material   what a judge is shown and must answer, and how the material is made harmless
canaries, asking, record     questions with a known verdict, asking so that a kill loses nothing, stored verdicts
outcome, alone, facts        from verdicts to win rates, and the judge's habits
winrate, agreement, texts    length control, kappa and Krippendorff's alpha, how the sides write
calibrate, correction        against human labels; a rate corrected for the judge's errors
lineage, standing            who is related to whom, and who may gate
panel, judged                one comparison from beginning to end
comparing, pipeline          where answers come from; all comparisons of an evaluation

The functions here only hand over, so that importing the room costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_ops.config import EvaluateConfig, MachineConfig
    from gemma_ops.config.judge import JudgeConfig
    from gemma_ops.judging.judge_material import Side
    from gemma_ops.judging.judged import JudgedComparison
    from gemma_ops.tasks.grades import Graded


def judge_evaluation(
    out: Path,
    settings: JudgeConfig,
    evaluation: EvaluateConfig,
    machine: MachineConfig,
    graded: Sequence[Graded],
    sides: Mapping[str, Side],
    *,
    run: str,
    data: Path | None = None,
    base: Path | None = None,
    tuned: Path | None = None,
    quantized: Path | None = None,
) -> list[JudgedComparison]:
    """Judge an evaluation's answers: every task, `settings.first` against each of `settings.versus`.

    `graded` are all targets' answers, `sides` says who each target is, `data` is the artifact of `prepare` (for the
    teachers of the training rows). Writes one folder per comparison below `out`. Raises as `panel.judge_pairs`.
    """
    from gemma_ops.judging.judge_run import judge_step as judge

    return judge(
        out, settings, evaluation, machine, graded, sides, run=run, data=data, base=base, tuned=tuned, quantized=quantized
    )  # fmt: skip
