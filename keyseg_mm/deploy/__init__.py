"""Exported models where they run: sealed graphs, and keyed ones whose tables are inputs; no torch, no host.

A customer's machine has numpy, cryptography and onnxruntime or OpenVINO::

    from keyseg_mm.deploy import load

    session = load('model.onnx.sealed', key='file:customer.key')
"""

from keyseg_mm.deploy.container import Exported, read_exported
from keyseg_mm.deploy.loading import load

__all__ = ['Exported', 'load', 'read_exported']
