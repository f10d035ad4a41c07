"""A Visual Resolution Compressor for any model whose images have a scale: labels, rules, network and training."""
