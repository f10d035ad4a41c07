"""Passes for targets that compile graphs of fixed shapes."""
