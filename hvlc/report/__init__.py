"""Measurements for people: terminal tables, Markdown, and a self-contained HTML page."""
