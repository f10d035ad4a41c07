"""Checkpoints that another tool has quantized: their levels are kept as they are where a format can store them."""
