"""The literature's other systems, each a scheme in a file: to compare with, not to build on.

Importing this package makes them known to the core's registries, without the host's packages.
"""

from keyseg_mm.baselines import blockwise, parameters, patches

__all__ = ['blockwise', 'parameters', 'patches']
