"""Every tolerance of the suite, with its reason."""

#: float32 graphs against torch: both sum in float32 but in another order; measured up to 2e-6 on the tiny model,
#: whose activations are of order one, and a wrong wire or axis shows as 1e-2 or more.
GRAPH_FLOAT32 = 5e-5

#: Normalized pixels of the front graph against torch: the two resize kernels differ in the last bits of their
#: weights; one grey level is 8e-3.
PIXELS = 1e-4

#: The same for sides of thousands of pixels: positions of samples are float32, so at row 10000 they carry 1e-3 pixels.
PIXELS_EXTREME = 1e-3

#: MatMulNBits against a float64 product with the dequantized weights, relative to the largest output: float32 sums
#: of up to 200 terms.
QUANTIZED_PRODUCT = 1e-5

#: A look-up dequantizes one value: one float32 rounding.
QUANTIZED_LOOKUP = 1e-6

#: Quantization errors are summed in float32 by the solver and in float64 by the oracle.
SOLVER_ERROR = 1e-4
