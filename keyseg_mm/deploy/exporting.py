"""Exporting a protected checkpoint: its graph, sealed, or keyed with its tables as inputs; proved, then written."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from numpy.typing import NDArray
from torch import Tensor

from keyseg_mm.atomic import refuse_existing, write_new
from keyseg_mm.checkpoint.models import load as load_weights
from keyseg_mm.checkpoint.safetensors import write_safetensors
from keyseg_mm.deploy.container import FORMAT, GRAPH, ONNX, Exported, digest, read_exported, with_tables
from keyseg_mm.deploy.graph import Form, Graph, exported
from keyseg_mm.deploy.loading import ready
from keyseg_mm.errors import LockError, SecretExposedError
from keyseg_mm.keys.identity import Key, Recipient
from keyseg_mm.keys.key import FeatureSecret
from keyseg_mm.keys.locator import LocatedKey
from keyseg_mm.locking.proof import LIMIT, NOTHING
from keyseg_mm.mm.config import build_plain_model
from keyseg_mm.mm.keyed import FROM_CHECKPOINT, protect
from keyseg_mm.runtime.attach import protection_of
from keyseg_mm.runtime.leaks import Needles
from keyseg_mm.seal.sections import WEIGHTS, Sealing, seal_checkpoint
from keyseg_mm.wrapping import memory_stamp


@dataclass(frozen=True)
class Made:
    """What was exported.

    Attributes:
        size: bytes of the file.
        points: whose tables are inputs.
        error: relative error of norms against PyTorch, or the share of pixels of another class.
        without: the same of a keyed graph without its key.
    """

    size: int
    points: tuple[str, ...]
    error: float
    without: float | None


def export_file(
    cfg: Config,
    checkpoint: str | Path,
    key: Key,
    out: str | Path,
    form: Form,
    recipients: Sequence[Key | Recipient] = (),
    keyed: bool = False,
    overwrite: bool = False,
) -> Made:
    """Export a protected checkpoint.

    Args:
        cfg: its config, protected or plain.
        checkpoint: protected.
        key: of one of its recipients.
        out: file to make.
        form: how the graph is to be.
        recipients: who else can open it.
        keyed: the tables are inputs of the graph, which is not sealed. Otherwise it is the opened model's, sealed.
        overwrite: replace ``out``.

    Raises:
        LockError: it did not come out right, or the checkpoint has no maps whose tables could be inputs.
        SecretExposedError: a table is in the graph.
        KeysegError: it could not be read, exported or written; ``out`` is as it was.
    """
    refuse_existing(out, overwrite)
    plain = revert_sync_batchnorm(build_plain_model(cfg))
    meta = _meta(load_weights(plain, checkpoint, key), form)
    reference, how = Graph(plain.eval(), form), Sealing(key, (key, *recipients))
    graph = _keyed_graph(cfg, checkpoint, key, form) if keyed else reference
    content = _keyed_file(graph, how, meta) if keyed else _sealed_file(graph, how, meta)
    error, without = _prove(content, key, reference, keyed)
    write_new(out, lambda file: file.write(content), overwrite=overwrite)
    return Made(len(content), tuple(str(e.site.point) for e in graph.encryptors), error, without)


def seal_graph(content: bytes, how: Sealing, meta: Mapping[str, Any]) -> bytes:
    """A graph's file, sealed; see :mod:`keyseg_mm.deploy.container`.

    Args:
        content: the file's bytes.
        how: for whom.
        meta: plain values: what it is.
    """
    return seal_tables({GRAPH: torch.frombuffer(bytearray(content), dtype=torch.uint8)}, how, meta)


def seal_tables(tensors: Mapping[str, Tensor], how: Sealing, meta: Mapping[str, Any]) -> bytes:
    """A sealed file of tensors by their names."""
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    file = io.BytesIO()
    write_safetensors(seal_checkpoint({'meta': dict(meta), WEIGHTS: copies}, how, own=True), file)
    return file.getvalue()


def _meta(said: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """What the file says of its graph: what it takes and gives, and the names of its classes where they are known."""
    names = said.get('dataset_meta')
    classes = names.get('classes') if isinstance(names, Mapping) else None
    takes = 'uint8 (1, H, W, 3), blue first' if form.preprocessing else 'float32 (1, 3, H, W), normalised'
    gives = 'int64 (1, H, W)' if form.argmax else 'float32 (1, C, H, W)'
    meta = {FORMAT: form.format, 'size': list(form.size) if form.size else None, 'image': takes, form.output: gives}
    return {**meta, 'classes': list(map(str, classes))} if classes else meta


def _keyed_graph(cfg: Config, checkpoint: str | Path, key: Key, form: Form) -> Graph:
    model = protect(
        revert_sync_batchnorm(build_plain_model(cfg)), LocatedKey(key), {'key': '', 'points': FROM_CHECKPOINT}
    )
    load_weights(model, checkpoint, key)
    protection = protection_of(model)
    encryptors = [] if protection is None else [e for e in protection.encryptors if 'test' in e.site.runs]
    if not encryptors:
        raise LockError(
            f'{checkpoint} has no maps in its weights, so that no table could be an input. Lock the plain checkpoint '
            'with --config, or export without --keys-as-inputs'
        )
    return Graph(model.eval(), form, encryptors)


def _sealed_file(graph: Graph, how: Sealing, meta: Mapping[str, Any]) -> bytes:
    return seal_graph(exported(graph), how, meta)


def _keyed_file(graph: Graph, how: Sealing, meta: dict[str, Any]) -> bytes:
    """A keyed graph with its tables sealed in it; searched for them before anybody gets it."""
    content = exported(graph)
    meta.update(tables=list(graph.tables), sha256=digest(content))
    content = with_tables(content, seal_tables(graph.tables, how, meta))
    protection = protection_of(graph.model)
    if protection is None or not isinstance(protection.features, FeatureSecret):
        raise LockError('this model lost its protection while it was exported')
    leaks = Needles(how.key, [memory_stamp(how.key, protection.stamp, protection.features)]).search('graph', content)
    if leaks:
        raise SecretExposedError(f'the exporter wrote secrets into the graph, and it was thrown away: {leaks[0]}')
    return content


def _prove(content: bytes, key: Key, reference: Graph, keyed: bool) -> tuple[float, float | None]:
    """Open what is about to be written and run it beside PyTorch.

    Raises:
        LockError: they differ; or a keyed one does not without its key.
    """
    opened = read_exported(content, key)
    run = _runner(opened, reference.form)
    images = [reference.example()] + ([reference.example(other=True)] if reference.form.size is None else [])
    with torch.no_grad():
        wanted = [reference(image).numpy() for image in images]
    gap = max(_gap(run(image), want) for image, want in zip(images, wanted))
    if gap > LIMIT:
        raise LockError(f'what the exporter wrote is not the model (off by {gap:.1g}), and was thrown away')
    if not keyed:
        return gap, None
    without = _gap(_runner(opened.neutral(), reference.form)(images[0]), wanted[0])
    if without <= NOTHING:
        raise LockError(
            f'without its key the graph computes the same (off by {without:.1g}): the maps protect nothing, and it was '
            'thrown away'
        )
    return gap, without


def _runner(opened: Exported, form: Form) -> Callable[[Tensor], NDArray[Any]]:
    found = ready(opened)
    if form.format == ONNX:
        return lambda image: np.asarray(found.run(None, {'image': image.numpy()})[0])
    return lambda image: np.asarray(found(image).detach().numpy())


def _gap(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Relative error of norms; of classes, the share of pixels that differ."""
    if got.shape != want.shape or got.dtype != want.dtype or not np.isfinite(got).all():
        return float('inf')
    if want.dtype.kind == 'i':
        return float((got != want).mean())
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))
