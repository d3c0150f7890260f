"""The attacks on encrypted images, one file to each family; importing this package registers all of them."""

from keyseg_mm.audit.images.attacks import order, values

__all__ = ['order', 'values']
