"""The check that gates keep their error rates on data whose truth is known. Data with a known truth, judged over and
over: `gemma-ops bench gates`.

In every case the truth stands exactly at the margin, where a wrong pass and a wrong fail are most likely. What is
counted must stay below the level, and the intervals must hold the truth as often as they say. The other tables tell the
price: rows beside those of a t-test, what a second look costs, and how often a macro F1 passes.
"""

from gemma_ops.bench.gates.gates_record import measure_gates, record_lines

__all__ = ["measure_gates", "record_lines"]
