"""Kills every command that writes, at random moments, and looks at what is left: ``python -m tests.support.kills``."""
