"""nano: a Gemma 4 of CPU size, trained by this project, so that every step can be tried and tested without a download.

It has the parts that make Gemma 4 hard (per-layer embeddings, shared key/value layers, sliding and full attention, a
capped and tied head) in 2 million parameters, and it has really learned to read, copy and answer.

    tickets.py   the support desk: tickets in, routing JSON out
    forms.py     drawn forms: pictures in, JSON out; `python -m gemma_ops.nano.forms` draws rows
    lessons.py   what nano is taught before anybody fine-tunes it
    nano_shape.py     its dimensions and its tokenizer
    nano_drafter.py   those of its drafter, which `python -m gemma_ops.drafting` trains
    pretrain.py  the training; `python -m gemma_ops.nano` runs it again from the seed
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped checkpoint."""
DRAFTER = Path(__file__).parent / "drafter"
"""Folder of the shipped drafter of that checkpoint."""
