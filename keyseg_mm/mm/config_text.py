"""Configs that come as text, as the host writes them into checkpoints: values, and nothing that could run.

The host runs such a text as a program when it resumes a run, and when an inferencer is given weights alone. What it
dumps itself is assignments of plain values, so that nothing else is needed. The types that they name are built, and
the host builds any object of any module: these may be names in its registries only.
"""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from typing import Any

from keyseg_mm.errors import KeysegError, SecretExposedError

_LONGEST = 4 * 2**20  # characters
_SCOPES = 'keyseg_mm|mmcv|mmdet|mmengine|mmpretrain|mmseg'
_REGISTERED = re.compile(rf'(({_SCOPES})\.)?[A-Z]\w*')
_NOT_VALUES = ('_base_', 'custom_imports')


def refuse_programs(text: str) -> None:
    """Make sure that a config given as text is values and nothing else.

    Raises:
        KeysegError: it is not.
        SecretExposedError: it names a program to be run for its key.
    """
    try:
        if len(text) > _LONGEST or '{{' in text:
            raise ValueError
        for statement in ast.parse(text).body:
            _check_statement(statement)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise KeysegError(
            'a config that came as text, with a checkpoint, is more than plain values: reading it could run code, so '
            'it was not read; give the config as a file of your own'
        ) from None


def _check_statement(node: ast.stmt) -> None:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if not isinstance(node, ast.Assign) or any(not isinstance(target, ast.Name) for target in node.targets):
        raise ValueError
    if any(isinstance(target, ast.Name) and target.id in _NOT_VALUES for target in node.targets):
        raise ValueError
    _check_value(node.value)


def _check_value(node: ast.expr, name: Any = None) -> None:
    if isinstance(node, ast.Constant):
        _check_constant(node.value, name)
    elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        for item in node.elts:
            _check_value(item)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values):
            if not isinstance(key, ast.Constant):
                raise ValueError
            _check_value(value, key.value)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        for item in node.args:  # the host writes dict({...}) where a key is no identifier
            if not isinstance(item, ast.Dict):
                raise ValueError
            _check_value(item)
        for keyword in node.keywords:
            if keyword.arg is None:
                raise ValueError
            _check_value(keyword.value, keyword.arg)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        _check_constant(node.operand.value, None)
    else:
        raise ValueError


def _check_constant(value: Any, name: Any) -> None:
    if isinstance(value, str) and value.startswith('cmd:'):
        raise SecretExposedError(
            'a config that came as text, with a checkpoint, names a program to be run for its key (cmd:...); give '
            'the config as a file of your own'
        )
    is_type = name == 'type' and isinstance(value, str) and not _REGISTERED.fullmatch(value)
    if is_type and (not value.isidentifier() or find_spec(value) is not None):  # a module of that name would be built
        raise ValueError
