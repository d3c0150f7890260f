"""Painted street scenes: pictures for the demo, for proofs and for whoever has no data."""
