"""One fine-tuning run: its options, the loop and its parts, what it writes. Starting it is a command's affair."""
