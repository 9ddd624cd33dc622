"""Who can compute: loading and choosing the backends, and the backends themselves, C++, CUDA, products and Triton.

Each takes flat batches, as the operators do; which of them computes what is in ``svdrd.dispatch``.
"""
