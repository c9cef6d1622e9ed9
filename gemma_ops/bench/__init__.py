"""Measurements against named peers: a training step, and the gates on data whose truth is known."""
