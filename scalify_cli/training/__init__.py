"""Optimizer, step, loop, evaluation and checkpoints."""
