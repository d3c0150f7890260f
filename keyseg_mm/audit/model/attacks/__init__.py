"""The attacks on a model's file, one file to each family; importing this package registers all of them."""

from keyseg_mm.audit.model.attacks import finetuning, inversion, matching, points, substitutes

__all__ = ['finetuning', 'inversion', 'matching', 'points', 'substitutes']
