"""Judges: models that compare answers where no metric can, and everything that says how far to believe them.

judge_protocol, rubric, judge_material    what a judge is shown and must answer, and how the material is made harmless
judge_canaries, judge_asking, judgements  questions with a known verdict; asking so that a kill loses nothing; stored
                                          verdicts
judge_outcome, alone, judge_figures       from verdicts to win rates, and the judge's habits
winrate, agreement, answer_style          length control, kappa and Krippendorff's alpha, how the sides write
calibrate, correction                     against human labels; a rate corrected for the judge's errors
judge_lineage, judge_standing             who is related to whom, and who may gate
panel, judged                             one comparison from beginning to end
pairs, judge_run                          where answers come from; all comparisons of an evaluation
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_ops.runs.lazy import later

if TYPE_CHECKING:
    from gemma_ops.judging.judge_run import judge_evaluation
else:
    judge_evaluation = later("gemma_ops.judging.judge_run", "judge_evaluation")

__all__ = ["judge_evaluation"]
