"""One stock config, plain and protected: built, run, sealed, locked, opened, trained for a step."""

from __future__ import annotations

import importlib
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
from keyseg_mm import SecretKey, plan_lock, protections, unlock, write_key_file
from keyseg_mm.cli.host import host_tool
from keyseg_mm.locking import SCHEMES, lock_in_place
from keyseg_mm.mm.bench import HostBench, tensors_of
from keyseg_mm.mm.inputs import noise, random_samples
from keyseg_mm.mm.sizes import Size, sizes_for
from keyseg_mm.model.passes import copied, seed
from keyseg_mm.seal.sections import Sealing, seal_checkpoint, unseal_checkpoint
from keyseg_mm.stamp import is_stamp

CONFIGS = host_tool('train').parents[1] / 'configs'
KEY, SALT = SecretKey(bytes(range(32))), bytes([1]) * 16
SMALLEST = 64  # side of the images that are tried first
_SHOWN = 3  # parameters that are left plain, of which the largest are named
# Where a pass would take minutes: tables of positions for large pictures alone; many sentences for a class.
_LIGHTER = {
    'BEiT': dict(img_size=(SMALLEST, SMALLEST)),
    'MAE': dict(img_size=(SMALLEST, SMALLEST)),
    'CLIPTextEncoder': dict(templates=['a photo of a {}.']),
}


def model_of(config: str) -> ConfigDict:
    """The model of a stock config, but without downloads, for one process, and lighter where a pass takes minutes.

    Args:
        config: folder and name below the host's ``configs/``.
    """
    init_default_scope('mmseg')
    cfg = Config.fromfile(str(CONFIGS / f'{config}.py'), import_custom_modules=False)
    imports = (cfg.get('custom_imports') or {}).get('imports', ())
    for name in [imports] if isinstance(imports, str) else imports:
        importlib.import_module(name)
    _adapt(cfg.model)
    found: ConfigDict = cfg.model
    return found


def _adapt(value: Any) -> None:
    if isinstance(value, dict):
        for name in ('pretrained', 'init_cfg'):
            value.pop(name, None)
        if value.get('type') == 'SyncBN':
            value['type'] = 'BN'
        value.update(_LIGHTER.get(value.get('type'), {}))
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        _adapt(item)


def examine(config: str) -> dict[str, Any]:
    """What a config's model is like protected; ``plain`` says why nothing is known, where it does not run plain."""
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    began, row = time.monotonic(), dict[str, Any](config=config)
    try:
        model = model_of(config)
        plain = _built(model)
        _fill(plain)
        size = _runs_at(copied(plain))  # SAN, once run, remembers what its text encoder said
    except Exception as error:  # the host raises whatever it likes
        return {**row, 'plain': _words(error)}
    row.update(parameters=sum(p.numel() for p in plain.parameters()), size=size)
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder) / 'key'
        write_key_file(key, KEY)
        for name, look in (('linear', _linear), ('stages', _stages)):
            try:
                row[name] = look(model, plain, size, f'file:{key}')
            except Exception as error:
                row[name] = {'wrong': _words(error)}
    return {**row, 'seconds': round(time.monotonic() - began, 1)}


def _linear(model: ConfigDict, plain: nn.Module, size: Size, key: str) -> dict[str, Any]:
    """Locked with the defaults: the proof, the seal, the way back, and the locked model as it is loaded and trained."""
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    proof = SCHEMES['features'].prove(HostBench(SMALLEST), plain, state, plan_lock(plain), KEY, SALT)
    carried = {name for entry in proof.plan.maps for name in entry.weights}
    own = {name: p.numel() for name, p in plain.named_parameters()}
    left = sorted((own.keys() - carried), key=lambda name: -own[name])
    agreed = proof.with_key
    row = {
        'points': len(proof.plan.entries),
        'share': sum(own[name] for name in own.keys() & carried) / sum(own.values()),
        'error': agreed.error if agreed else 0.0,
        'without': proof.without['without it'].error,
        'left': [[name, own[name] / sum(own.values()), _why(name, proof.plan.left_out)] for name in left[:_SHOWN]],
    }
    locked = dict(state)
    lock_in_place(locked, proof.plan, KEY, SALT)
    sealed = seal_checkpoint({'state_dict': locked}, Sealing(KEY))
    opened = unlock(unseal_checkpoint(KEY, sealed)['state_dict'], KEY)
    _expect(list(opened) == list(state), 'the opened state_dict has other names')
    _expect(all(torch.equal(opened[name], state[name]) for name in state), 'the opened weights have other bits')
    moved = [n for n in carried if n in sealed['state_dict'] and torch.equal(sealed['state_dict'][n], state[n])]
    _expect(not moved, f'these weights are in the sealed file as they were: {moved[:3]}')
    keyed = _built(_keyed(model, key, points='checkpoint'))
    keyed.load_state_dict(sealed['state_dict'])
    _train_keyed(keyed, plain, size)
    return row


def _stages(model: ConfigDict, plain: nn.Module, size: Size, key: str) -> dict[str, Any]:
    """The paper's way: what the backbone hands on is encrypted, and the rest learns to read it."""
    keyed = _built(_keyed(model, key, points='stages'))
    found = dict(keyed.named_parameters())
    with torch.no_grad():
        for name, value in plain.named_parameters():
            found[name].copy_(value)
    error = _difference(_test(plain, size), _test(keyed, size))
    _expect(error > 0, 'the encrypted maps change nothing')
    _train_keyed(keyed, plain, size)
    return {'points': sum(len(p.encryptors) for p in protections(keyed)), 'without': error}


def _train_keyed(keyed: nn.Module, plain: nn.Module, size: Size) -> None:
    """One test and one step of training: all points fire, all numbers are finite, and all names are the host's."""
    names = [name for name in keyed.state_dict() if not is_stamp(name)]
    _expect(names == list(plain.state_dict()), 'the state_dict has other names than the plain one')
    encryptors = [encryptor for p in protections(keyed) for encryptor in p.encryptors]
    for run, name in ((_test, 'test'), (_train, 'train')):
        before = {encryptor: encryptor.calls for encryptor in encryptors}
        run(keyed, size)
        idle = [str(e.site.point) for e in encryptors if name in e.site.runs and e.calls == before[e]]
        _expect(not idle, f'in a pass of {name} these points did not fire: {idle[:3]}')
    _expect(all(p.isfinite().all() for p in keyed.parameters()), 'a step of training gave what is no number')


def _keyed(model: ConfigDict, key: str, **protection: Any) -> ConfigDict:
    return ConfigDict(model, type='keyseg_mm.Keyed', of=model['type'], protection=dict(key=key, **protection))


def _built(model: ConfigDict) -> nn.Module:
    from mmseg.registry import MODELS

    found: nn.Module = MODELS.build(ConfigDict(model))
    return found


def _fill(model: nn.Module) -> None:
    """Weights that hand all signals on: the hosts' own leave some as they were, and some next to nothing."""
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=(len(weight) / weight.numel()) ** 0.5)


def _runs_at(model: nn.Module) -> Size:
    """The first size, from small ones up, at which a model is tested and trained."""
    own, others = sizes_for(model, SMALLEST)
    for size in (*own, *others):
        try:
            _test(model, size)
            _train(model, size, step=False)
            return size
        except Exception as error:
            last = error
    raise last


def _test(model: Any, size: Size) -> dict[str, Tensor]:
    seed()
    images = noise(model, 1, size)
    with torch.no_grad():
        return dict(tensors_of(model.eval().predict(images, random_samples(model, images))))


def _train(model: Any, size: Size, step: bool = True) -> None:
    seed()
    images = noise(model, 2, size)
    state = {name: value.clone() for name, value in model.named_buffers()}
    loss, _ = model.parse_losses(model.train().loss(images, random_samples(model, images)))
    _expect(bool(loss.isfinite()), 'the loss is no number')
    if step:
        loss.backward()
        torch.optim.SGD(model.parameters(), 1e-6).step()
        return
    for name, buffer in model.named_buffers():
        buffer.copy_(state[name])


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest relative difference of two outputs."""
    return max(
        float((other[n] - one[n]).norm() / one[n].norm().clamp_min(1e-12)) for n in one if one[n].isfinite().all()
    )


def _why(name: str, left_out: dict[str, str]) -> str:
    """Why a parameter is left plain, by the layer that has it."""
    while name:
        name = name.rpartition('.')[0]
        if name in left_out:
            return left_out[name]
    return ''


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def _words(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]
