"""One module per model_type; each has `export(checkpoint) -> Bundle`."""
