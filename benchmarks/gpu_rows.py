"""The rows of benchmarks/gpu.py: each fills in what it finds as it goes; a failure leaves what came before."""

from __future__ import annotations

import copy
from typing import Any

import torch
from common import PROTECTED, quiet
from gpu_compile import compile_row
from gpu_files import files_row
from gpu_models import (
    KEY,
    Stepper,
    Ways,
    by_turns,
    exact,
    gap,
    keyed_at,
    opened,
    to_device,
    without_chance,
    workload,
)
from torch import Tensor

from keyseg_mm import detach, lock
from keyseg_mm.errors import LockError
from keyseg_mm.keys.locator import LocatedKey
from keyseg_mm.mm.keyed import protect
from keyseg_mm.stamp import is_stamp

# float32 without TF32; sums are reordered, which costs a few units in the last place. As `keyseg lock` proves locks.
TOLERANCE, LOSS_TOLERANCE = 1e-3, 1e-2
SMALLEST = 'SegFormer-B0'  # the only one that a CPU runs in bfloat16 in no time
DIFFERENT = 0.1  # what is less changed than this is not protected


def run_row(row: dict[str, Any], device: str, found: dict[str, Any]) -> None:
    """Run a row, of the fields of ``gpu.Row``."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = row['kind'] in ('time', 'memory')  # as the host's configs have it
    kinds = {'correct': correct, 'time': times, 'memory': memory, 'compile': compile_row, 'files': files_row}
    kinds[row['kind']](row, device, found)


def correct(row: dict[str, Any], device: str, found: dict[str, Any]) -> None:
    """Locked and opened models against the plain one, on the device."""
    work = workload(row['model'], device)
    without_chance(work.model)
    twin = to_device(opened(work), device)
    models = {points: _locked(work, points, found) for points in PROTECTED}
    state = {name: value.clone() for name, value in work.model.state_dict().items()}
    plain = Stepper(to_device(work, device), device)
    with exact():
        wanted = plain.logits(), *_training(plain)
        bits = all(torch.equal(value.cpu(), state[name]) for name, value in twin.model.state_dict().items())
        error = gap(Stepper(twin, device).logits(), wanted[0])
        found['opened'] = {'bits equal': bits, 'logits': error, 'ok': bits and error < TOLERANCE}
        for points, pair in models.items():
            if pair is not None:
                found[points] |= _against(wanted, *(Stepper(to_device(part, device), device) for part in pair))
    for points, pair in models.items():
        if pair is not None and (device == 'cuda' or row['model'] == SMALLEST):
            half, keyed = (Stepper(w, device, autocast=True).logits() for w in (work, pair[0]))
            found[points]['autocast'] = gap(keyed, half)
            found[points]['autocast, plain to float32'] = gap(half, plain.logits())
        found[points] |= _against_cpu(row['model'], points, device)
    found['ok'] = all(part.get('ok', True) for part in found.values() if isinstance(part, dict))


def _locked(work: Any, points: str, found: dict[str, Any]) -> tuple[Any, Any] | None:
    """The locked model with its key, and without; None where it cannot be locked there, and why in what was found."""
    with quiet():
        try:
            weights = lock(work.model.state_dict(), work.model, KEY, points, PROTECTED[points])
        except LockError as error:
            found[points] = {'not lockable': str(error)[:300]}
            return None
        found[points] = {}
        keyed, without = copy.deepcopy(work), copy.deepcopy(work)
        protect(keyed.model, LocatedKey(KEY), {'points': 'checkpoint'})
        keyed.model.load_state_dict(weights)
        without.model.load_state_dict({name: value for name, value in weights.items() if not is_stamp(name)})
    return keyed, without


def _training(stepper: Stepper) -> tuple[Tensor, Tensor]:
    """The loss of a training step, and the norm of its gradients, which orthogonal maps do not change."""
    loss = stepper.loss()
    loss.backward()
    grads = [p.grad for p in stepper.work.model.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.double()) for g in grads]))
    stepper.work.optimizer.optimizer.zero_grad()
    return loss.detach(), norm


def _against(wanted: tuple[Tensor, ...], keyed: Stepper, without: Stepper) -> dict[str, Any]:
    """How far the locked model is from the plain one, with its key and without."""
    logits, none = keyed.logits(), without.logits()
    loss, norm = _training(keyed)
    errors = {
        'logits': gap(logits, wanted[0]),
        'loss': gap(loss, wanted[1]),
        'gradient norm': gap(norm, wanted[2]),
        'without key': gap(none, wanted[0]),
        'without key, same class': float((none.argmax(1) == wanted[0].argmax(1)).float().mean()),
    }
    right = errors['logits'] < TOLERANCE and max(errors['loss'], errors['gradient norm']) < LOSS_TOLERANCE
    return {**errors, 'ok': right and errors['without key'] > DIFFERENT}


def _against_cpu(name: str, points: str, device: str) -> dict[str, Any]:
    """A keyed model on the device against the same one on the CPU, on a small part of the images."""
    work = workload(name, device)
    keyed_at(work.model, points)
    work.inputs = work.inputs[:, :, :128, :128].contiguous()
    there = to_device(copy.deepcopy(work), device)
    with exact():
        wanted, got = Stepper(work, 'cpu').logits(), Stepper(there, device).logits()
        detach(there.model)
        unprotected = Stepper(there, device).logits()
    error, change = gap(got, wanted), gap(unprotected, wanted)
    # of random weights a map may change little: what counts is that it changes more than computing elsewhere does
    return {'to the CPU': error, 'detached': change} | (
        {} if error < TOLERANCE and change > max(TOLERANCE, 100 * error) else {'ok': False}
    )


def times(row: dict[str, Any], device: str, found: dict[str, Any]) -> None:
    """Inference and training steps of all ways, by turns."""
    ways = Ways(row['model'], device, row['precision'] == 'autocast')
    found['points'], found['size'] = ways.points(), list(ways.steppers['plain'].work.inputs.shape)
    inference = {way: stepper.logits for way, stepper in ways.steppers.items()}
    training = {way: stepper.train for way, stepper in ways.steppers.items()}
    found['inference'] = by_turns(inference, device, 3.0, ways.switch)
    found['training'] = by_turns(training, device, 5.0, ways.switch)
    found['overflowed'] = any(stepper.overflowed for stepper in ways.steppers.values())


def memory(row: dict[str, Any], device: str, found: dict[str, Any]) -> None:
    """Peaks of the GPU's allocated memory, of one model at a time."""
    for way in ('plain', *PROTECTED, 'opened'):
        work = workload(row['model'], device)
        work = opened(work) if way == 'opened' else work
        if way in PROTECTED:
            keyed_at(work.model, way)
        to_device(work, device)
        peaks = found.setdefault('peak MiB', {})[way] = {}
        for precision in ('float32', 'autocast') if device == 'cuda' else ('float32',):
            stepper = Stepper(work, device, precision == 'autocast')
            for mode, step in (('inference', stepper.logits), ('training', stepper.train)):
                peaks[f'{mode}, {precision}'] = _peak(step, device)
        del work, stepper, step


def _peak(step: Any, device: str) -> float | None:
    step()
    if device != 'cuda':
        return None  # torch counts only what it holds on a GPU
    step()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20
