"""Files of true widths written from a checkpoint cut to some layers: `gemma-ops bench convert`.

cut_checkpoint.py     the checkpoint, with random weights
conversion_arms.py    what is measured, each in a process of its own
conversion_record.py  the record, and its lines for a terminal
"""

from gemma_ops.bench.conversion.conversion_record import conversion_lines, measure_conversion

__all__ = ["conversion_lines", "measure_conversion"]
