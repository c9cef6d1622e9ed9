"""`python -m gemma_ops.drafting [FOLDER]`: train nano's drafter again and write it, by default over the shipped one."""

import sys
from pathlib import Path

from gemma_ops.drafting.pretrain_nano import pretrain_drafter
from gemma_ops.nano import DRAFTER

pretrain_drafter(Path(sys.argv[1]) if len(sys.argv) > 1 else DRAFTER)
