"""One module per model_type; each has `export(checkpoint) -> Bundle`.

`read(checkpoint) -> Checkpoint`, where a family has it, comes before: it gives transformers' configuration and names to
a checkpoint that is saved with others. `LEFT_OUT`, where a family has it, is what the names of tensors begin with that
it does not export.
"""
