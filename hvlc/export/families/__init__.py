"""One module per model_type; each has `export(checkpoint) -> Bundle`.

`LEFT_OUT`, where a family has it, is what the names of tensors begin with that it does not export.
"""
