"""Quantized files beside llama.cpp's own: bytes and divergence of each way to make them, on models small enough for a
CPU."""

from gemma_ops.bench.quantization.quantization_record import measure_quantization, quantization_lines

__all__ = ["measure_quantization", "quantization_lines"]
