"""Counting a keyed model's operations by the host's tracer, as ``get_flops.py`` does.

The counts are those of the plain model, maps left out: a permutation computes nothing. So the tracer meets the model
without its encryptors, and its graph, which it keeps to itself, holds neither tables nor encrypted maps.
"""

from __future__ import annotations

import functools
from typing import Any

from mmengine.analysis import jit_analysis

from keyseg_mm.runtime.attach import protections
from keyseg_mm.runtime.gates import without_gates
from keyseg_mm.runtime.rules import State

_TRACE = '_get_scoped_trace_graph'


def count_plain() -> None:
    """Let mmengine's complexity analysis trace models without their gates; once."""
    old = getattr(jit_analysis, _TRACE)

    @functools.wraps(old)
    def trace(module: Any, *args: Any, **kwargs: Any) -> Any:
        found = protections(module)
        kept = [protection.state for protection in found]
        with without_gates(module):
            for protection in found:
                protection.state = State.WAITING  # torch asks for a state_dict while it traces
            try:
                return old(module, *args, **kwargs)
            finally:
                for protection, state in zip(found, kept):
                    protection.state = state

    setattr(jit_analysis, _TRACE, trace)
