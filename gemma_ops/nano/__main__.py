"""`python -m gemma_ops.nano [FOLDER]`: train nano again and write it, by default over the shipped checkpoint."""

import sys
from pathlib import Path

from gemma_ops.nano import WEIGHTS
from gemma_ops.nano.pretrain import pretrain

pretrain(Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS)
