"""What a run needs, before anything is downloaded: bytes, speed, hours and dollars, by arithmetic and without torch.

`training_memory` counts bytes, `speed` work and time, `row_lengths` the data; `training_plan` puts them together,
`advice` finds what would make a run fit, `plan_text` writes it out.
"""

from gemma_ops.planning.advice import plan
from gemma_ops.planning.plan_text import plan_lines
from gemma_ops.planning.training_plan import Change, TrainingPlan

__all__ = ["Change", "TrainingPlan", "plan", "plan_lines"]
