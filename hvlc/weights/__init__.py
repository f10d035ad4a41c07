"""Weights: read checkpoints and return lazy expressions. This package does not know graphs."""
