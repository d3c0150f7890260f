#!/usr/bin/env python
"""``keyseg test`` as a file, for torchrun and for those used to mmsegmentation's tools/test.py."""

import sys

from keyseg_mm.cli import run_module

if __name__ == '__main__':
    sys.exit(run_module('test', sys.argv[1:]))
