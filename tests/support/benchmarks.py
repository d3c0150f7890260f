"""The scripts of benchmarks/, imported as they import each other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


def script(name: str) -> ModuleType:
    """One of them, by its name."""
    with mock.patch.object(sys, 'path', [str(BENCHMARKS), str(BENCHMARKS / 'accuracy'), *sys.path]):
        return importlib.import_module(name)
