"""The sizes at which one way to compute ends and another begins. Whatever decides by size reads them here."""

# PyTorch batches an SVD on CUDA devices up to 32 x 32, and loops over larger matrices.
BATCHED_SVD = 32
# The longer side of what Triton's Jacobi kernels keep on the chip, and the shorter one of what the CUDA kernels do.
JACOBI = 64
# Of float64 matrices the polar factor and the loss do not fit on the chip with more columns than these.
JACOBI_DOUBLE = 32
