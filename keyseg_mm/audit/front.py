"""Old address of :mod:`keyseg_mm.audit.model.input_cipher`, for the attacks until they have moved."""

from keyseg_mm.audit.model.input_cipher import Code, Fronted, Pixels, from_blocks, in_blocks

__all__ = ['Code', 'Fronted', 'Pixels', 'from_blocks', 'in_blocks']
