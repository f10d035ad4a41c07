"""A graph against a target."""
