"""What an attacker who sees encrypted images can restore of the plain ones.

The images of ``EncryptImage`` (SHF, NP, FFX) and of ``encrypt-image`` and ``EncryptPatches`` are attacked in the ways
of the literature, between controls. :func:`keyseg_mm.audit.images.audit.audit_images` runs it all.
"""
