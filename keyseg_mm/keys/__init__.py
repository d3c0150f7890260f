"""The secret half: what a key is, where it is found, and what is derived from it."""
