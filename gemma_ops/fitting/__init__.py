"""Quantization fitted to the rows: rounding with error feedback, and training of what scales the codes."""
