"""Triton kernels and their launchers, which have the signatures of the operators in ``svdrd.dispatch``.

Importing this package does not import Triton. Its modules do, and ``svdrd.dispatch.routes`` imports them when they are
first needed. The table there says which cases a launcher takes.
"""
