#!/usr/bin/env python
"""``keyseg train`` as a file, for torchrun and for those used to mmsegmentation's tools/train.py."""

import sys

from keyseg_mm.cli import run_module

if __name__ == '__main__':
    sys.exit(run_module('train', sys.argv[1:]))
