"""The seal: the cipher over a file's sections, on bytes (:mod:`~keyseg_mm.seal.cipher`) and on tensors.

The weights of a sealed file are ciphertext of AES-256-GCM under a content key that is fresh for each file. Names,
dtypes and shapes stay, so every host and tool reads the file as before; without the key its numbers are noise.
"""
