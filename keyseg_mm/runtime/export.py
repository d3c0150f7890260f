"""Graphs that would carry the secret tables as constants, and the compiler's, which takes them as inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.fx import _symbolic_trace
from torch.fx.experimental import proxy_tensor

from keyseg_mm.errors import SecretExposedError

# Asked at every feature map, so the quick ones. The ONNX exporters go through tracing or torch.export themselves; they
# are asked, which is slow, only on torch releases that have no is_exporting.
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
_is_exporting: Callable[[], bool] = getattr(torch.compiler, 'is_exporting', torch.onnx.is_in_onnx_export)
_is_symbolic: Callable[[], bool] = getattr(_symbolic_trace, 'is_fx_symbolic_tracing', _symbolic_trace.is_fx_tracing)
_proxy_mode: Callable[[], object] = getattr(proxy_tensor, 'get_proxy_mode', lambda: None)  # make_fx
_mode: Any = getattr(torch._C, '_get_dispatch_mode', lambda key: None)
_FAKE: Any = getattr(getattr(torch._C, '_TorchDispatchModeKey', None), 'FAKE', None)  # AOTAutograd looks ahead in it
# Until torch 2.13 the compiler takes is_exporting for true whenever it compiles; what that reads tells them apart.
_HAS_FLAG = hasattr(torch.compiler, '_is_exporting_flag')
#: Whether this torch tells compiling from exporting; where it does not, a keyed model is compiled by neither.
CAN_COMPILE = hasattr(torch.compiler, 'is_exporting')


def _exporter_is_tracing() -> bool:
    """Whether it is an exporter that has the compiler trace: not all releases of torch say so by their flags."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get('__name__', '').startswith(_EXPORTERS):
            return True
        frame = frame.f_back
    return False


_EXPORTERS = ('torch.export.', 'torch._export.', 'torch._dynamo.functional_export', 'torch.onnx.')
# To the compiler: run this as you trace, and take what it returns. (torch.compiler.assume_constant_result would do it,
# and take a second to import the compiler.)
_exporter_is_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refuse_export() -> None:
    """Refuse to run inside a graph exporter: the graph would carry the tables as constants, a leak of the secret.

    torch.compile is no exporter: it takes the tables as inputs of its graph.

    Raises:
        SecretExposedError: TorchScript's tracer, ONNX's exporters, torch.export, AOTAutograd, make_fx or torch.fx is
            at work.
    """
    if torch.compiler.is_dynamo_compiling():  # what is asked below is not for its eyes
        if (torch.compiler._is_exporting_flag if _HAS_FLAG else _is_exporting()) or _exporter_is_tracing():
            raise SecretExposedError(REFUSED)
        if not CAN_COMPILE:
            raise SecretExposedError(_TOO_OLD)
    elif _is_tracing() or _is_exporting() or _is_symbolic() or _proxy_mode() is not None or _mode(_FAKE) is not None:
        raise SecretExposedError(REFUSED)


REFUSED = (
    'refused to export a keyed model: the graph would carry the secret tables as constants. `keyseg export` writes the '
    'opened model as a sealed graph, or, with --keys-as-inputs, a graph that takes the tables as inputs. From Python: '
    "loaded with protection.runtime='plain' it is the plain model; after detach() it runs degraded"
)
_TOO_OLD = (
    'refused to compile a keyed model: this torch does not tell compiling from exporting, and an exported graph would '
    'carry the secret tables as constants; torch 2.7 and later do'
)
