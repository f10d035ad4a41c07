"""Weights: bytes in, lazy expressions out. Knows no graph."""
