"""Exit codes that are no error of ours; those of errors stand in `errors.py`."""

INTERRUPTED = 130
"""Ctrl-C, as shells count it: 128 and the number of the signal."""
