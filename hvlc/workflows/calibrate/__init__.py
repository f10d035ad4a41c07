"""A plan's calibration: inputs, forward passes, cost."""
