"""The specification in plain PyTorch: definitions and derivatives, for any device. It is the tests' oracle."""
