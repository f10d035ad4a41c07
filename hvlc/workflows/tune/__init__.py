"""Choices of a package by what they keep and what they cost on a user's questions."""
