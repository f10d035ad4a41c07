"""Parsers of what users give: documents, JSON Lines, images, tokenizer files. Strict and within bounds."""
