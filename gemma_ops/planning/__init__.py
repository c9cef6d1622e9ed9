"""What a run needs, before anything is downloaded: bytes, speed, hours and dollars, by arithmetic and without torch.

`memory` counts bytes, `speed` work and time, `rows` the data; `make` puts them together, `advice` finds what would make a
run fit, `text` writes it out.
"""

from gemma_ops.planning.training_plan import Change, Plan, plan

__all__ = ["Change", "Plan", "plan"]
