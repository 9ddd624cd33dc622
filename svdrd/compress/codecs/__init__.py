"""Codecs and their weights: CompressAI's and others' by name, and checkpoints. Knows no images and no training."""
