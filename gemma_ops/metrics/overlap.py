"""Free text compared by overlap with a reference: ROUGE-L and chrF, from the libraries that define them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gemma_ops.metrics.metric import Metric, ScoredAnswer, ScoredRow, Scorer, one_metric, score_words


class _Words:
    """Tokenizer for rouge-score: its own keeps only a-z and 0-9, so other scripts would score 0 against themselves."""

    def tokenize(self, text: str) -> list[str]:
        return score_words(text)


class RougeL(Metric):
    """F-measure of the longest common subsequence of words (C.-Y. Lin, 2004; rouge-score)."""

    id: Literal["rouge_l"]

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        from rouge_score.rouge_scorer import RougeScorer

        library = RougeScorer(["rougeL"], tokenizer=_Words())

        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            if row.reference is None:
                return one_metric(self.key, None)
            return one_metric(self.key, float(library.score(row.gold, text)["rougeL"].fmeasure))

        return Scorer(self.key, (self.key,), score)


class Chrf(Metric):
    """Character n-gram F-score, n up to 6, beta 2 (M. Popović, 2015; sacrebleu), as a share of 1."""

    id: Literal["chrf"]

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        from sacrebleu.metrics import CHRF

        library = CHRF()

        def score(text: str, row: ScoredRow) -> ScoredAnswer:
            if row.reference is None:
                return one_metric(self.key, None)
            return one_metric(self.key, min(1.0, library.sentence_score(text, [row.gold]).score / 100))

        return Scorer(self.key, (self.key,), score)
