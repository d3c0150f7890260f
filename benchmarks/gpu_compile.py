"""Compiled models in benchmarks/gpu.py: keyed against plain, right and in one graph, and how fast."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from gpu_models import by_turns, exact, gap, keyed_at, to_device, without_chance, workload
from torch import Tensor, nn
from torch._dynamo.utils import counters

TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 2e-2


def compile_row(row: dict[str, Any], device: str, found: dict[str, Any]) -> None:
    """The network to its logits, and back in training, by inductor on a GPU; on a CPU without generating code."""
    counters.clear()
    work = workload(row['model'], device)
    without_chance(work.model)
    plain, keyed = work.model, copy.deepcopy(work.model)
    keyed_at(keyed, row['points'])
    for model in (plain, keyed):
        model.to(device).train(row['mode'] == 'training')
    to_device(work, device)
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in work.samples])

    def step_of(network: Callable[..., Tensor], model: nn.Module) -> Callable[[], Tensor]:
        return lambda: _step(network, model, work.inputs, labels)

    steps = {'plain': _compiled(plain, 'plain', device, step_of, found)}
    steps['keyed'] = _compiled(keyed, 'keyed', device, step_of, found)
    steps['eager'] = step_of(plain, plain)
    steps['keyed eager'] = step_of(keyed, keyed)
    found.update(by_turns(steps, device, 3.0))
    found['graphs in all'] = counters['stats']['unique_graphs']
    parts = found['plain'], found['keyed']
    found['ok'] = parts[1]['graphs'] == parts[0]['graphs'] and all(
        part['logits'] < TOLERANCE and part.get('gradient', 0.0) < GRADIENT_TOLERANCE for part in parts
    )


def _step(network: Callable[..., Tensor], model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """One pass; in training with gradients, which are dropped when the next one begins."""
    with torch.set_grad_enabled(model.training):
        logits = network(inputs, mode='tensor')
        if model.training:
            model.zero_grad()
            whole = nn.functional.interpolate(logits, labels.shape[1:], mode='bilinear', align_corners=False)
            nn.functional.cross_entropy(whole, labels).backward()
    return logits.detach()


def _compiled(
    model: nn.Module, name: str, device: str, step_of: Callable[..., Any], found: dict[str, Any]
) -> Callable[[], Tensor]:
    """The step of the compiled model, after it was compared with the model itself."""
    backend = 'inductor' if device == 'cuda' else 'eager'
    found['backend'], part = backend, found.setdefault(name, {})
    with exact():
        wanted, gradient = step_of(model, model)(), _gradient(model)
        began = time.monotonic()
        step, graphs = None, counters['stats']['unique_graphs']
        # the plain model decides whether one graph is to be had
        for fullgraph in (True, False) if name == 'plain' else (found['plain']['fullgraph'],):
            try:
                step = step_of(torch.compile(model, backend=backend, fullgraph=fullgraph), model)
                got = step()
                break
            except Exception as error:  # of dynamo's many kinds
                if not fullgraph or name != 'plain' or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                    raise
                part['not one graph'] = ' '.join(str(error).split())[:300]
                torch._dynamo.reset()
                graphs = counters['stats']['unique_graphs']
        part |= {'fullgraph': fullgraph, 'seconds': time.monotonic() - began, 'logits': gap(got, wanted)}
        part['graphs'] = counters['stats']['unique_graphs'] - graphs
        if gradient is not None:
            part['gradient'] = gap(_gradient(model), gradient)
    return step


def _gradient(model: nn.Module) -> Tensor | None:
    """All gradients in a row; None in inference."""
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(found) if found else None
