"""Scores of packages and checkpoints, and their comparison."""
