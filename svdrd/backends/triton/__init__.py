"""Triton kernels and their launchers, which have the signatures of the operators in ``svdrd.library``.

Importing this package imports nothing; its modules import Triton, and ``svdrd.library`` imports them when they are
first needed. A launcher returns NotImplemented for a case that it does not take.
"""
