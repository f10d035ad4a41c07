"""Checkpoints that another tool has quantized: their levels are taken as they are, where a format allows."""
