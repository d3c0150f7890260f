"""Whose copy is this? By its stamp, by the maps in its weights, and by its fingerprint."""

from keyseg_mm.tracing.evidence import gather
from keyseg_mm.tracing.maps import PLAIN, Similarity, by_stamp, by_weights
from keyseg_mm.tracing.marking import STRENGTH, Fingerprint, model_of
from keyseg_mm.tracing.search import CERTAIN, Score, search

__all__ = [
    'CERTAIN',
    'PLAIN',
    'STRENGTH',
    'Fingerprint',
    'Score',
    'Similarity',
    'by_stamp',
    'by_weights',
    'gather',
    'model_of',
    'search',
]
