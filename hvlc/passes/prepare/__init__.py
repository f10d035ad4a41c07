"""Passes that change the float model exactly, so that it is easier to quantize."""
