"""Graphs made ready to run, in memory: an onnxruntime session, an OpenVINO compiled model, a program of torch.

Nothing of an opened graph is written to a disk: options by which a runtime would do that are refused.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keyseg_mm.deploy.container import ONNX, TORCH, Exported, Source, read_exported
from keyseg_mm.errors import IntegrityError, KeysegError, SecretExposedError
from keyseg_mm.keys.identity import Key
from keyseg_mm.keys.secret import Secret, unseen

# What makes a runtime write the graph, or what it made of it, to a disk; in whatever case and with whatever around it.
_WRITES = ('cache', 'dump', 'optimized_model_filepath', 'save', 'ctx', 'context', 'blob')

# The same, in the options of an onnxruntime session, which names no others.
_ENTRIES = ('ep.context_enable', 'ep.context_file_path')


def load(source: Source, key: Key | str | None, runtime: str | None = None, verify: bool = True, **options: Any) -> Any:
    """Open an exported graph and make it ready to run.

    Args:
        source: what ``keyseg export`` made: its path, or its bytes.
        key: key, identity or locator, as ``'file:customer.key'``.
        runtime: ``'onnxruntime'`` (default for ONNX), ``'openvino'``, or ``'torch'``.
        verify: see :func:`keyseg_mm.deploy.container.read_exported`.
        options: of the runtime: what ``onnxruntime.InferenceSession`` takes (``providers``, ``sess_options`` ...);
            ``device`` and ``config`` of OpenVINO's ``compile_model``.

    Returns:
        An ``onnxruntime.InferenceSession``, an ``openvino.CompiledModel``, or a module of torch. Of a keyed graph they
        are given the image alone: the tables are fed to it.

    Raises:
        KeyFileError, KeyMismatchError, IntegrityError: see :func:`keyseg_mm.deploy.container.read_exported`.
        SecretExposedError: an option would have the runtime write the graph to a disk.
        KeysegError: no graph, or not of this runtime, or the runtime is not installed.
    """
    return ready(read_exported(source, key, verify), runtime, **options)


def ready(exported: Exported, runtime: str | None = None, **options: Any) -> Any:
    """An opened graph made ready to run; see :func:`load`."""
    runtime = runtime or {ONNX: 'onnxruntime', TORCH: 'torch'}[exported.format]
    if runtime not in _RUNTIMES:
        raise KeysegError(f'no runtime {runtime!r}: there are {", ".join(_RUNTIMES)}')
    takes, start = _RUNTIMES[runtime]
    if takes != exported.format:
        raise KeysegError(f'{runtime} takes graphs of the format {takes}, and this one is {exported.format}')
    _refuse_writing(options)
    return start(exported, **options)


def needed(name: str, extra: str) -> Any:
    """A package that an extra brings.

    Raises:
        KeysegError: it is not installed; with the line that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise KeysegError(f"this needs {error.name or name}: pip install 'keyseg-mm[{extra}]'") from None


def _refuse_writing(options: Mapping[str, Any]) -> None:
    said = [options.get('config'), options.get('sess_options'), options.get('providers')]
    names = list(options)
    for value in (*said, options.get('provider_options')):
        names += _names_in(value)
    session = options.get('sess_options')
    path = getattr(session, 'optimized_model_filepath', '')
    if session is not None:
        names += [name for name in _ENTRIES if _is_set(session, name)]
    found = [name for name in names if any(word in name.lower() for word in _WRITES)]
    if found or path:
        raise SecretExposedError(
            f'{(*found, "optimized_model_filepath")[0]} would have the runtime write the opened graph to a disk; leave '
            'it out'
        )


def _is_set(session: Any, name: str) -> bool:
    """Whether the options of an onnxruntime session have an entry of this name that asks for something."""
    try:
        return session.get_session_config_entry(name) not in ('', '0')
    except (RuntimeError, AttributeError):  # of names that were never set
        return False


def _names_in(value: Any) -> list[str]:
    """The names of options, however deep."""
    if isinstance(value, Mapping):
        return [str(name) for name in value] + [name for item in value.values() for name in _names_in(item)]
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in _names_in(item)]
    return []


@unseen
def _in_onnxruntime(exported: Exported, **options: Any) -> Any:
    runtime = needed('onnxruntime', 'onnx')
    if not exported.tables:
        return runtime.InferenceSession(bytes(exported.graph), **options)
    tables = exported.tables

    class KeyedSession(runtime.InferenceSession):  # type: ignore[misc, name-defined]
        """A session that feeds the tables to its graph."""

        @unseen
        def run(self, output_names: Any, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
            """Run the graph on what it takes beside its tables."""
            return super().run(output_names, {**tables, **input_feed}, run_options)

        def get_inputs(self) -> Sequence[Any]:
            """What the graph takes beside its tables."""
            return [found for found in super().get_inputs() if found.name not in tables]

    return KeyedSession(bytes(exported.graph), **options)


@unseen
def _in_openvino(
    exported: Exported, device: str = 'CPU', config: Mapping[str, Any] | None = None, core: Any = None
) -> Any:
    """Tables are set once in each request for inference; the image is what is left to give, the first input."""
    runtime = needed('openvino', 'openvino')
    core = core or runtime.Core()
    if core.get_property('CACHE_DIR'):
        raise SecretExposedError('this core has a CACHE_DIR, where it would write the opened graph; take another')
    compiled = core.compile_model(core.read_model(io.BytesIO(exported.graph)), device, dict(config or {}))
    if not exported.tables:
        return compiled
    tables = {name: runtime.Tensor(table) for name, table in exported.tables.items()}

    class KeyedModel(runtime.CompiledModel):  # type: ignore[misc, name-defined]
        """A compiled model that feeds the tables to its graph."""

        @unseen
        def create_infer_request(self) -> Any:
            """A request that has the tables, and lacks the image."""
            request = super().create_infer_request()
            for name, tensor in tables.items():
                request.set_tensor(name, tensor)
            return request

    return KeyedModel(compiled)


@unseen
def _in_torch(exported: Exported, device: Any = None) -> Any:
    torch = needed('torch', 'torch')
    if not exported.verified:
        raise IntegrityError(
            'a program of torch can run code as it is loaded, and nobody can tell who made this one: give its key, and '
            'an unaltered file. To run a graph without its key, export it as onnx'
        )
    module = torch.export.load(io.BytesIO(exported.graph)).module()
    tables = tuple(map(torch.from_numpy, exported.tables.values()))
    if device is not None:
        module, tables = module.to(device), tuple(table.to(device) for table in tables)
    return KeyedProgram(module, tables) if tables else module


class KeyedProgram(Secret):
    """A program of torch that is fed its tables."""

    __slots__ = ('_module', '_tables')

    def __init__(self, module: Callable[..., Any], tables: tuple[Any, ...]) -> None:
        self._module, self._tables = module, tables

    @property
    def public_id(self) -> str:
        return f'with {len(self._tables)} tables'

    @unseen
    def __call__(self, image: Any) -> Any:
        return self._module(image, self._tables)


_RUNTIMES: dict[str, tuple[str, Callable[..., Any]]] = {
    'onnxruntime': (ONNX, _in_onnxruntime),
    'openvino': (ONNX, _in_openvino),
    'torch': (TORCH, _in_torch),
}
