"""What one backend has for itself, and which of them is chosen."""
