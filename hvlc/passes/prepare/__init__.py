"""Passes that make the float model easier to quantize without changing what it computes."""
