"""Passes for targets that compile graphs with static shapes."""
