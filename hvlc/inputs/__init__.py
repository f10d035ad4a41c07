"""What users give: documents, JSON Lines, images, tokenizer files. Parsed strictly, within bounds."""
