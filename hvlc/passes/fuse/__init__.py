"""Passes that join operators."""
