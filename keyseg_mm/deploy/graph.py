"""What is exported of a segmentor: from the image, prepared or not, to the scores of its classes, or to the classes."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyseg_mm.deploy.container import ONNX, TORCH, archive_of, members_of, nothing
from keyseg_mm.deploy.loading import needed
from keyseg_mm.errors import KeysegError
from keyseg_mm.maps.base import Tables
from keyseg_mm.mm.bench import preprocess
from keyseg_mm.mm.inputs import metainfo
from keyseg_mm.mm.sizes import Size, sizes_for
from keyseg_mm.runtime.encryptor import Encryptor, given_tables

FORMATS = (ONNX, TORCH)
IMAGE, LOGITS, LABELS = 'image', 'logits', 'labels'


@dataclass(frozen=True)
class Form:
    """How a graph is to be.

    Attributes:
        format: ``'onnx'`` or ``'torch-export'``.
        size: height and width of the images; None: of any.
        preprocessing: take images as they are read, uint8 (1, H, W, 3), blue first; otherwise float32 (1, 3, H, W),
            normalised as the config's data preprocessor does it.
        argmax: give the class of each pixel, int64 (1, H, W); otherwise scores, float32 (1, C, H, W).
    """

    format: str = ONNX
    size: Size | None = None
    preprocessing: bool = False
    argmax: bool = False

    @property
    def output(self) -> str:
        """Name of the graph's output."""
        return LABELS if self.argmax else LOGITS


class Graph(nn.Module):
    """A segmentor as it is exported.

    Args:
        model: the segmentor, opened or keyed.
        form: how the graph is to be.
        encryptors: of a keyed one, those that work in testing. Their tables are the graph's second input.

    Raises:
        KeysegError: it is no segmentor, or its images are padded to another size.
    """

    def __init__(self, model: Any, form: Form, encryptors: Sequence[Encryptor] = ()) -> None:
        super().__init__()
        if not hasattr(model, 'encode_decode'):
            raise KeysegError(f'a {type(model).__name__} is no segmentor that mmsegmentation tests, and not exported')
        self.model, self.form, self.encryptors = model, form, encryptors
        padding = getattr(model.data_preprocessor, 'test_cfg', None) or {}
        divisor, whole = padding.get('size_divisor') or 1, padding.get('size')
        if form.size is not None and (any(side % divisor for side in form.size) or (whole or form.size) != form.size):
            raise KeysegError(
                f'this config pads images to {whole or f"multiples of {divisor}"}, and its graph takes images that are '
                'padded already: give such a size'
            )

    @property
    def tables(self) -> dict[str, Tensor]:
        """The tables that are inputs, by their names in the graph."""
        return {
            f'{e.site.point}/{name}': table
            for e in self.encryptors
            for name, table in zip(e.work.names, e.work.placed(torch.device('cpu'), torch.float32))
            if table.numel()
        }

    def forward(self, image: Tensor, tables: tuple[Tensor, ...] = ()) -> Tensor:
        """Scores or classes of an image; see :class:`Form`."""
        with given_tables(self.encryptors, self._by_encryptor(tables)):
            prepared = self._prepared(image)
            size = prepared.shape[2:]
            scores: Tensor = self.model.encode_decode(prepared, [metainfo(size)] * len(prepared))
        if not self.form.argmax:
            return scores
        if scores.shape[1] == 1:
            inside: Tensor = scores.sigmoid() > self.model.decode_head.threshold
            return inside.long().squeeze(1)
        return scores.argmax(1)

    def _by_encryptor(self, tables: Sequence[Tensor]) -> list[Tables]:
        left, found = list(tables), []
        for encryptor in self.encryptors:
            own = encryptor.work.placed(torch.device('cpu'), torch.float32)
            found.append(tuple(left.pop(0) if table.numel() else table for table in own))
        return found

    def _prepared(self, image: Tensor) -> Tensor:
        return preprocess(self.model, image.permute(0, 3, 1, 2)) if self.form.preprocessing else image

    def example(self, other: bool = False) -> Tensor:
        """An image of noise that the graph takes; of an ``other`` size where it takes several."""
        size = self.form.size
        if size is None:
            height, width = own_size(self.model)
            size = (height, width + 64) if height == width else (height, width)
            size = (size[0] + 32, size[1] + 64) if other else size
        made = torch.Generator().manual_seed(0)
        if self.form.preprocessing:
            return torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, generator=made)
        return torch.randn(1, 3, *size, generator=made)


def own_size(model: Any) -> Size:
    """The size of images that a model is for, as its config tells."""
    return sizes_for(model)[0][-1]


def neutral(table: Tensor) -> Tensor:
    """The table of a map that changes nothing."""
    return torch.from_numpy(nothing(tuple(table.shape), str(table.dtype).removeprefix('torch.')))


def exported(graph: Graph) -> bytes:
    """The file of a graph.

    Raises:
        SecretExposedError: it would carry a table.
        KeysegError: the exporter cannot export it; with its own words.
    """
    # what it is traced with tells no secret, wherever the exporter puts it
    tables_like = tuple(map(neutral, graph.tables.values()))
    arguments: Any = (graph.example(), tables_like) if tables_like else (graph.example(),)
    shapes: Any = None
    if graph.form.size is None:
        first = 1 if graph.form.preprocessing else 2
        free = torch.export.Dim.DYNAMIC  # type: ignore[attr-defined]
        shapes = ({first: free, first + 1: free}, *([tuple(None for _ in tables_like)] if tables_like else []))
    write = _onnx if graph.form.format == ONNX else _program
    if graph.form.format == ONNX:
        for name in ('onnx', 'onnxscript', 'onnxruntime'):
            needed(name, 'export')
    try:
        with torch.no_grad(), quiet(), _any_pooling():
            return write(graph.eval(), arguments, shapes)
    except KeysegError:
        raise
    except Exception as error:  # exporters raise whatever they like
        cause = error
        while cause is not None and not isinstance(cause, KeysegError):
            cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
        if cause is not None:
            raise cause from None
        words = str(error).strip().splitlines() or ['']
        raise KeysegError(f'this model could not be exported: {type(error).__name__}: {words[0]}') from None


def _onnx(graph: Graph, arguments: Any, shapes: Any) -> bytes:
    names = [IMAGE, *graph.tables]
    program: Any = torch.onnx.export(
        graph,
        arguments,
        dynamo=True,
        input_names=names,
        output_names=[graph.form.output],
        dynamic_shapes=shapes,
        verbose=False,
    )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in this machine's files the layer is
    found: bytes = program.model_proto.SerializeToString()
    return found


def _program(graph: Graph, arguments: Any, shapes: Any) -> bytes:
    program = torch.export.export(graph, arguments, dynamic_shapes=shapes, strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    return archive_of(members_of(file.getvalue()))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes and warnings of the host and of exporters, which are for who maintains them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


@contextmanager
def _any_pooling() -> Iterator[None]:
    """Let adaptive pooling be exported for images of any size: as products with matrices, which grow with the image."""
    old = functional.adaptive_avg_pool2d

    def pool(x: Tensor, output_size: Any) -> Tensor:
        sizes = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        if all(isinstance(side, int) for side in x.shape[2:]) or None in sizes:
            return old(x, output_size)
        rows, columns = (_shares(x.shape[dim], size, x) for dim, size in zip((2, 3), sizes))
        return rows @ x @ columns.transpose(0, 1)

    functional.adaptive_avg_pool2d = pool  # type: ignore[assignment]
    try:
        yield
    finally:
        functional.adaptive_avg_pool2d = old


def _shares(side: Any, count: int, x: Tensor) -> Tensor:
    """(count, side): what each of ``count`` bins takes of each place, from floor(i side / count) to the next's ceil."""
    places = torch.arange(side, device=x.device)
    bins = torch.arange(count, device=x.device)[:, None]
    inside = (places >= bins * side // count) & (places < -(-(bins + 1) * side // count))
    shares: Tensor = inside.to(x.dtype)
    return shares / shares.sum(1, keepdim=True)
