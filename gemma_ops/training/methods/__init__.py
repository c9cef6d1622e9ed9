"""Preference and reinforcement methods, one small file each, on TRL's trainers.

preference_course.py  rows, model and trainer of them all, for the skeleton in `train_step`
whole.py      one batch of the loader is one optimizer step, however it is laid into forward passes
batches.py    rows of a pass as tensors
scoring.py    log-probabilities of given tokens, without padding and without whole logits
reference.py  what the model as it was at the start says
dpo.py        pairs: DPO, IPO, robust, hinge, …
orpo.py       pairs, without a reference
kto.py        single answers, wanted or not
reward_model.py     a model that scores answers
rollouts.py  what GRPO and RLOO share: prompts as tokens, drawing, validation
grpo.py       answers drawn and compared with each other; rloo.py leaves one out
rewards.py    metrics of evaluation as rewards
"""
