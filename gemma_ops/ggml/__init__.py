"""GGML's block types: their lattices, encoders that search scales for least weighted error, and the bytes of a file."""
