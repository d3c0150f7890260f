"""Whose copy is this? By its stamp, by the maps in its weights, and by its fingerprint."""

from keyseg_mm.tracing.evidence import gather
from keyseg_mm.tracing.maps import PLAIN, Similarity, by_stamp, by_weights
from keyseg_mm.tracing.marking import STRENGTH, Fingerprint, model_of
from keyseg_mm.tracing.scoring import CERTAIN, Score, search
from keyseg_mm.tracing.verdict import Verdict, trace

__all__ = [
    'CERTAIN',
    'PLAIN',
    'STRENGTH',
    'Fingerprint',
    'Score',
    'Similarity',
    'Verdict',
    'by_stamp',
    'by_weights',
    'gather',
    'model_of',
    'search',
    'trace',
]
