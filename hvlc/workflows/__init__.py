"""Workflows, in which the rooms meet: building, evaluating, and the demonstration."""
