"""Checkpoint files: reading, writing, and the operations on them."""
