"""Measurements against named peers: a training step, preparing rows, and the gates on data whose truth is known."""
