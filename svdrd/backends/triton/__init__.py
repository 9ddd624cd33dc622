"""Triton kernels and their launchers, which have the signatures of the operators in ``svdrd.dispatch``.

Importing this package imports nothing; its modules import Triton, and ``svdrd.dispatch.routes`` imports them when they
are first needed. Which cases a launcher takes is there, too.
"""
