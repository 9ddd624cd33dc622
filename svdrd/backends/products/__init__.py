"""The SVD, the polar factor and the loss by matrix products alone, in plain PyTorch: for GPUs, where an SVD is slow.

The iteration asks its products of an interface, which ``svdrd.backends.triton.products`` answers too.
"""
