"""Passes that perform a plan."""
