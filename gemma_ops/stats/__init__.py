"""Statistics as pure numbers: valid tests and bounds for bounded scores, the rows they need, and levels spent over
looks.

Nothing here knows a configuration, a task or a file. Whoever has a question brings arrays.
"""
