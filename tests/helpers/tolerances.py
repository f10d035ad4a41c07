"""Every tolerance of the suite, with its reason."""

#: float32 graphs against torch: both sum in float32 but in another order; measured up to 2e-6 on the tiny model,
#: whose activations are of order one, and a wrong wire or axis shows as 1e-2 or more.
GRAPH_FLOAT32 = 5e-5

#: Features in a browser against the same graphs on the CPU, relative to their norm: WebAssembly's kernels sum float32
#: in another order. Measured 5e-7 to 8e-7 on the shipped checkpoint in float32.
BROWSER = 1e-5

#: The same for encoders that round their inputs to 8 bits as they run: a last bit tips values between two levels, and
#: what tips adds up to the form's own noise, 0.018 of the features. Measured 0.008 to 0.014; the other encoder is above
#: 0.1.
BROWSER_INTEGERS = 0.03

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

#: An entry of a rotation, one float32 rounding of a number below 1; products with it sum `size` such roundings.
ROTATION = 2e-7

#: Logits with an int8 cache against those with a float cache, relative to the largest: rounding of 1/254 of a channel's
#: largest magnitude in each of two layers; measured 1 % to 4 % on random decoders.
QUANTIZED_CACHE = 0.05

#: Values rounded by onnxruntime against values rounded by numpy, on average, relative to what rounding changes: levels
#: so far apart that it shows. Measured 0 to 1e-5; a level may fall the other way where sums of float32 differ in their
#: last bits. One value of forty that is rounded otherwise changes 3 times as much.
QUANTIZED_ACTIVATIONS = 0.01

#: Divergences summed from float32 logits of graphs run in stretches and as a whole: the logits differ in their last
#: bits, 1e-6 of gaps of 1e-2 that enter squared.
DAMAGE = 2e-3

#: Outputs with static 16-bit activations against those with the same weights and float activations, relative to the
#: largest: each of a few dozen values in a row is off by at most half a level, 1/131,070 of its range, 4e-4 if every
#: one is passed on whole.
STATIC_ACTIVATIONS = 1e-3

#: Share of grey levels that differ by two from torch's `interpolate` of bytes, whose weights have 16 bits: each of the
#: two passes may round to a neighbour, and both do in 2e-5 to 4e-5 of the levels measured.
TORCH_RESIZE = 2e-4
