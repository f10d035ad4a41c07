"""What each part costs when it is quantized."""
