"""Calibration data, statistics and the solvers that choose quantized levels."""
