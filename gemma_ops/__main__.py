"""`python -m gemma_ops` is `gemma-ops`."""

from gemma_ops.cli import main

main()
