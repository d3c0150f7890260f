"""Graphs that would carry the secret tables as constants, and the compiler's, which takes them as inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import _symbolic_trace
from torch.fx.experimental import proxy_tensor

from keyseg_mm.errors import SecretExposedError

# Asked at every feature map, so the quick ones. The ONNX exporters go through tracing or torch.export themselves; they
# are asked, which is slow, only on torch releases that have no is_exporting.
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
_is_exporting: Callable[[], bool] = getattr(torch.compiler, 'is_exporting', torch.onnx.is_in_onnx_export)
_is_symbolic: Callable[[], bool] = getattr(_symbolic_trace, 'is_fx_symbolic_tracing', _symbolic_trace.is_fx_tracing)
_proxy_mode: Callable[[], object] = getattr(proxy_tensor, 'get_proxy_mode', lambda: None)  # make_fx, AOTAutograd
# Until torch 2.13 the compiler takes is_exporting for true whenever it compiles; what that reads tells them apart.
_HAS_FLAG = hasattr(torch.compiler, '_is_exporting_flag')
#: Whether this torch tells compiling from exporting; where it does not, a keyed model is compiled by neither.
CAN_COMPILE = hasattr(torch.compiler, 'is_exporting')


def refuse_export() -> None:
    """Refuse to run inside a graph exporter: the graph would carry the tables as constants, a leak of the secret.

    torch.compile is no exporter: it takes the tables as inputs of its graph.

    Raises:
        SecretExposedError: TorchScript's tracer, ONNX's exporters, torch.export, make_fx or torch.fx is at work.
    """
    if torch.compiler.is_dynamo_compiling():  # what is asked below is not for its eyes
        if torch.compiler._is_exporting_flag if _HAS_FLAG else _is_exporting():
            raise SecretExposedError(REFUSED)
        if not CAN_COMPILE:
            raise SecretExposedError(_TOO_OLD)
    elif _is_tracing() or _is_exporting() or _is_symbolic() or _proxy_mode() is not None:
        raise SecretExposedError(REFUSED)


REFUSED = (
    'refused to export a keyed model: the graph would carry the secret tables as constants; detach() the '
    'encryptors and export the model as it is, which runs degraded for those without the key'
)
_TOO_OLD = (
    'refused to compile a keyed model: this torch does not tell compiling from exporting, and an exported graph would '
    'carry the secret tables as constants; torch 2.7 and later do'
)
