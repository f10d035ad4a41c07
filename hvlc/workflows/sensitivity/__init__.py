"""Cost of each part when it is quantized."""
