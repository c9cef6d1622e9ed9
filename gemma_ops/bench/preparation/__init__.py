"""The step `prepare` beside `datasets.map` with the same chat template and tokenizer: `gemma-ops bench prepare`.

preparation_arms.py    what is measured, each in a process of its own
preparation_record.py  the record, and its lines for a terminal
"""

from gemma_ops.bench.preparation.preparation_record import measure_preparation, preparation_lines

__all__ = ["measure_preparation", "preparation_lines"]
