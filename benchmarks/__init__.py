"""The benchmark suite: every provider is compared with float64 first, and only a right answer is timed.

``python -m benchmarks`` runs it and writes the CSV; ``python -m benchmarks.report`` draws the figure and writes the
README's tables from the CSV alone.
"""
