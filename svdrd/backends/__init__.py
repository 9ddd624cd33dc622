"""The backends, and which of them are here and chosen: C++, CUDA, Triton, and products in plain PyTorch.

A launcher takes a flat batch ``(b, m, n)``, as the operators do. ``svdrd.dispatch`` decides which launcher computes.
"""
