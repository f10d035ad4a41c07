"""Passes that write operators as a target takes them."""
