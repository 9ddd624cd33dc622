"""The public functions: right values, derivatives, degenerate and random inputs, photographs; over each backend."""
