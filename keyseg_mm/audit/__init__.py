"""The audit: what does somebody without the key really get out of a protected checkpoint?

An attacker holds a :class:`~keyseg_mm.audit.case.Case`: all that is public, and what the situation grants besides.
Attacks are registered classes in ``attacks/``, one file each. The referee alone holds the true key; it scores attacks
and controls by the same path. The headline is *attack advantage* = best attack mIoU - best control mIoU at the same
data.
"""
