"""Names of the package as pages write them."""

from __future__ import annotations

import importlib

from mmengine.registry import HOOKS, MODELS, TRANSFORMS


def resolve_dotted(name: str) -> bool:
    """Whether a dotted name is that of a module, of something in one, or known to the host's registries."""
    if any(registry.get(name) is not None for registry in (MODELS, HOOKS, TRANSFORMS)):
        return True
    parts = name.split('.')
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
