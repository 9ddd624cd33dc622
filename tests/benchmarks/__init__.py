"""The benchmarks on tiny cases, and the rehearsal of what a GPU is to run."""
