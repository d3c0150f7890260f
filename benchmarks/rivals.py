"""What else encrypts a model's weights, or opens them fast, each as its documentation says."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from torch import Tensor, nn


@dataclass(frozen=True)
class Files:
    """The files of a benchmark, by what is in them."""

    folder: Path

    @property
    def plain(self) -> Path:
        return self.of('plain')

    def of(self, name: str) -> Path:
        return self.folder / f'{name}.bin'


def synced(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file, to the disk."""
    with path.open('wb') as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """See a file that something else wrote to the disk."""
    with path.open('rb') as file:
        os.fsync(file.fileno())


class AesInPlace:
    """AES-256-GCM over a whole file: chunks, in place, in threads; their tags stand behind them."""

    KEY = bytes(range(32))  # any will do: only the time counts
    CHUNK, TAG = 2**22, 16

    def write(self, content: bytes, path: Path) -> None:
        data = memoryview(bytearray(content))
        tags = self._each(data, lambda chunk, number: self._run(chunk, number))
        synced(path, lambda file: (file.write(data), file.write(b''.join(tags))))

    def opened(self, path: Path) -> dict[str, Any]:
        """What ``torch.load`` finds in a file."""
        size = path.stat().st_size
        chunks = -(-size // (self.CHUNK + self.TAG))
        size -= chunks * self.TAG
        buffer = io.BytesIO()
        buffer.truncate(0)
        buffer.seek(size - 1)
        buffer.write(b'\0')
        with path.open('rb') as file, buffer.getbuffer() as data:
            file.readinto(data)
            tags = file.read()
            self._each(data, lambda chunk, number: self._run(chunk, number, tags[16 * number : 16 * number + 16]))
        buffer.seek(0)
        found: dict[str, Any] = torch.load(buffer, 'cpu', weights_only=True)
        return found

    @classmethod
    def opened_at_once(cls, path: Path) -> dict[str, Any]:
        """What most people write: the file decrypted by one call, into new memory."""
        plain = AESGCM(cls.KEY).decrypt(bytes(12), path.read_bytes(), None)
        found: dict[str, Any] = torch.load(io.BytesIO(plain), 'cpu', weights_only=True)
        return found

    def _each(self, data: memoryview, work: Callable[[memoryview, int], bytes]) -> list[bytes]:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            starts = range(0, len(data), self.CHUNK)
            return list(pool.map(lambda at: work(data[at : at + self.CHUNK], at // self.CHUNK), starts))

    def _run(self, chunk: memoryview, number: int, tag: bytes | None = None) -> bytes:
        cipher = Cipher(AES256(self.KEY), GCM(number.to_bytes(12, 'big'), tag))
        context: Any = cipher.encryptor() if tag is None else cipher.decryptor()
        context.update_into(chunk, chunk)
        context.finalize()
        return tag or context.tag


class Rival(Protocol):
    """A package that writes weights to a file, and loads them into a module."""

    name: str

    def write(self, weights: dict[str, Tensor], path: Path) -> None: ...

    def load(self, path: Path, module: nn.Module) -> None: ...


class Safetensors:
    """Plain, and mapped: how fast a file of this kind can be."""

    name = 'safetensors'

    def write(self, weights: dict[str, Tensor], path: Path) -> None:
        from safetensors.torch import save_file

        save_file(weights, path)
        sync(path)

    def load(self, path: Path, module: nn.Module) -> None:
        from safetensors.torch import load_file

        module.load_state_dict(load_file(path))


class Tensorizer:
    """CoreWeave's, with its encryption (libsodium's XSalsa20-Poly1305)."""

    name = 'tensorizer'
    KEY = bytes(range(32))

    def write(self, weights: dict[str, Tensor], path: Path) -> None:
        from tensorizer import EncryptionParams, TensorSerializer

        serializer = TensorSerializer(str(path), encryption=EncryptionParams(self.KEY))
        serializer.write_state_dict(weights)
        serializer.close()
        sync(path)

    def load(self, path: Path, module: nn.Module) -> None:
        from tensorizer import DecryptionParams, TensorDeserializer

        found = TensorDeserializer(str(path), device='cpu', encryption=DecryptionParams.from_key(self.KEY))
        with torch.no_grad():
            module.load_state_dict(found)
        found.close()


class Cryptotensors:
    """safetensors with AES-256-GCM and Ed25519 (Zhu et al., arXiv 2512.04580)."""

    name = 'cryptotensors'

    def __init__(self) -> None:
        secret = bytes(range(32))
        public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        self.keys = {
            'enc_key': {'kty': 'oct', 'alg': 'aes256gcm', 'kid': 'enc', 'k': _text(secret)},
            'sign_key': {
                'kty': 'okp',
                'alg': 'ed25519',
                'kid': 'sign',
                'd': _text(secret),
                'x': _text(public),
            },
        }

    def write(self, weights: dict[str, Tensor], path: Path) -> None:
        from cryptotensors.torch import save_file

        save_file(weights, path, config=self.keys)
        sync(path)

    def load(self, path: Path, module: nn.Module) -> None:
        from cryptotensors import register_direct_key_provider
        from cryptotensors.torch import load_file

        register_direct_key_provider(keys=list(self.keys.values()))
        module.load_state_dict(load_file(path))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


_ALL: tuple[Rival, ...] = (Safetensors(), Tensorizer(), Cryptotensors())
RIVALS = [rival for rival in _ALL if importlib.util.find_spec(rival.name)]


def missing() -> list[str]:
    """Rivals that are not installed."""
    return [rival.name for rival in _ALL if rival not in RIVALS]
