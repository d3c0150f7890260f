"""Live models written to files and read from them, sealed: what a Runner does by itself, for everything else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keyseg_mm.checkpoint.files import Source, read_checkpoint, write_checkpoint
from keyseg_mm.errors import KeyFileError, KeysegError, LockError, PlanMismatchError
from keyseg_mm.keys.identity import Key
from keyseg_mm.locking import unlock_in_place
from keyseg_mm.runtime.attach import protected_modules
from keyseg_mm.runtime.written import lock_opened
from keyseg_mm.seal.sections import WEIGHTS, check_meta_of, seal_checkpoint, sealed_stamp, unseal_section
from keyseg_mm.stamp import stamps_of


def save(model: nn.Module, path: str | Path, meta: Mapping[str, Any] | None = None, overwrite: bool = False) -> None:
    """Write a protected model's weights, sealed for its key and recipients.

    Args:
        model: protected, by a config or by :func:`keyseg_mm.attach`.
        path: ``.pth`` or ``.safetensors`` to make.
        meta: plain values that go with it, as the classes' names.
        overwrite: replace an existing file.

    Raises:
        LockError: it is not protected.
        NotFiredError: it is not what its stamp says.
        KeyMismatchError: it runs without its key, or its parts have different ones.
        KeysegError: the file could not be written; nothing is left behind.
    """
    found = protected_modules(model)
    if not found:
        raise LockError(
            f'this {type(model).__name__} is not protected, and would be written in the open; to seal a plain '
            'checkpoint: keyseg_mm.seal_file, or keyseg lock'
        )
    for module, protection in found:
        protection.check(module)
    how = found[0][1].sealing
    content = seal_checkpoint(lock_opened(model, {'meta': dict(meta or {}), WEIGHTS: model.state_dict()}), how)
    write_checkpoint(path, content[WEIGHTS], content['meta'], overwrite)


def load(model: nn.Module, source: Source, key: Key | None = None, strict: bool = True) -> dict[str, Any]:
    """Load a checkpoint into a model, protected or plain; decrypted straight into its parameters.

    Args:
        model: protected: it is what the checkpoint's stamp says afterwards. Plain: it gets the plain weights, and
            ``key`` opens them.
        source: a path, an open binary file, or the bytes themselves.
        key: for a plain model; see :func:`keyseg_mm.locate` for how one is found.
        strict: all names have to fit, as of ``load_state_dict``.

    Returns:
        The checkpoint's meta.

    Raises:
        KeyFileError: it is protected, and no key was given.
        KeyMismatchError: it is protected with another key.
        IntegrityError: it was altered. What was loaded of it is zeros.
        PlanMismatchError: it is of another model, or protected otherwise.
        KeysegError: it is no checkpoint.
    """
    content = read_checkpoint(source)
    meta, weights = content.get('meta'), content[WEIGHTS]
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    protections = [protection for _, protection in protected_modules(model)]
    if protections:
        key = next((p.key for p in protections if p.key is not None and not p.rules.deliberate), None)
    stamps = stamps_of(weights)
    if key is not None and stamps and key.id in next(iter(stamps.values())).key_ids:
        check_meta_of(key, content)
    if not protections and stamps:
        own = _own_tensors(model)
        weights = _plain(model, weights, key, own)
        if _is_filled(model, own, weights):
            return meta
    _fill(model, weights, strict)
    return meta


def _fill(model: nn.Module, weights: dict[str, Any], strict: bool) -> None:
    try:
        model.load_state_dict(weights, strict=strict)
    except KeysegError:
        raise
    except RuntimeError as error:  # torch's, with all names that do not fit
        way = 'strict=False leaves out what only one of them has; ' if strict else ''
        raise PlanMismatchError(
            f'this checkpoint is of another model: {error}\n{way}build the model from the config of its training'
        ) from None


def _is_filled(model: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Any]) -> bool:
    """Whether all weights were opened where the model has them, and no module has a way of its own to load its."""
    return (
        own.keys() == weights.keys()
        and all(weights[name] is tensor for name, tensor in own.items())
        and all(map(_loads_as_any, model.modules()))
    )


def _loads_as_any(module: nn.Module) -> bool:
    kind = type(module)
    stock = kind._load_from_state_dict.__module__.startswith('torch.nn.')  # those of norms look at counters of batches
    hooks = module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks
    return stock and not hooks and kind.load_state_dict is nn.Module.load_state_dict


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers that checkpoints hold, by all of their names."""
    found = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for name, tensor in (*module._parameters.items(), *kept.items()):
            if tensor is not None:
                found[f'{prefix}.{name}' if prefix else name] = tensor
    return found


def _plain(model: nn.Module, weights: dict[str, Any], key: Key | None, own: Mapping[str, Tensor]) -> dict[str, Any]:
    """The plain weights of a protected checkpoint, in the model's own memory where they fit."""
    if key is None:
        ids = next(iter(stamps_of(weights).values())).key_ids
        raise KeyFileError(
            f'this checkpoint is protected with key {" or ".join(ids)}; give key=keyseg_mm.locate(...).key'
        )
    if sealed_stamp(weights) is not None:
        weights = unseal_section(key, weights, into=own)
    plain = dict(weights)
    if stamps_of(plain):
        unlock_in_place(plain, key, model, own=False)
    return plain
