"""What a forward hook has to know of outputs and of exporters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from keyseg_mm.errors import SecretExposedError

# Asked at every feature map, so the quick ones. The ONNX exporters go through tracing or torch.export themselves; they
# are asked, which is slow, only on torch releases that have no is_exporting.
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
_is_exporting: Callable[[], bool] = getattr(torch.compiler, 'is_exporting', torch.onnx.is_in_onnx_export)


def replace_tensor(output: Any, index: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples and lists with their tensor of that index, counted depth first, changed."""
    return _replace(output, [index], change)


def refuse_export(x: Any) -> None:
    """Refuse to run inside a graph exporter: the graph would carry the tables as constants, a leak of the secret.

    Raises:
        SecretExposedError: TorchScript's tracer, ONNX's exporters, torch.export or torch.fx is at work.
    """
    if _is_tracing() or _is_exporting() or isinstance(x, torch.fx.Proxy):
        raise SecretExposedError(
            'refused to export a keyed model: the graph would carry the secret tables as constants; detach() the '
            'encryptors and export the model as it is, which runs degraded for those without the key'
        )


def _replace(value: Any, countdown: list[int], change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        countdown[0] -= 1
        return change(value) if countdown[0] == -1 else value
    if isinstance(value, (tuple, list)):
        items = [_replace(item, countdown, change) for item in value]
        return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)
    return value
