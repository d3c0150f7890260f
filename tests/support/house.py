"""The rules of the house, checked by reading the package: who may import whom, and how large things may be.

``python -m tests.support.house`` prints what breaks them; with ``--shrink`` it takes out of ``house_sins.json`` what is
no longer found.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SINS = ROOT / 'tests' / 'house_sins.json'
NAME = 'keyseg_mm'

# Each room, from the ground up, imports only what stands before it; rooms of one line do not import each other.
CHAIN = (
    'errors',
    'atomic | threads',
    'keys | model',
    'maps',
    'entries | envelope',
    'stamp',
    'wrapping',
    'bind',
    'seal',
    'lockplan',
    'locking',
    'runtime',
    'checkpoint',
    'tracing',
    'mm',
    'deploy',
    'baselines',
    'audit',
    'compare',
    'demo',
    'cli',
)
RANKS = {room: rank for rank, line in enumerate(CHAIN) for room in line.split(' | ')}
COMPOSITION = (NAME, f'{NAME}.registry')  # put the house together, so they may import anything
# of rooms where others need torch
TORCHLESS = tuple(
    f'{NAME}.{name}'
    for name in (
        'seal.chunks',
        'seal.cipher',
        'seal.manifest',
        'seal.meta',
        'checkpoint.layout',
        'deploy',
        'deploy.container',
        'deploy.loading',
    )
)
KEYLESS = (f'{NAME}.keys.derive', f'{NAME}.keys.secret')  # streams and what hides a value: no key is in there
HOST = ('mmengine', 'mmcv', 'mmseg', 'mmdet', 'mmpretrain')
LINES, FUNCTION_LINES, TOTAL = 300, 40, 15_000


def imports(path: Path) -> set[str]:
    """All modules and names that a file imports, at the top or inside functions; those under TYPE_CHECKING too."""
    found = set()
    for node in nodes(path.read_text()):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or '', *(f'{node.module}.{alias.name}' for alias in node.names)}
    return found


@functools.cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


@functools.cache
def nodes(text: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(text)))


@dataclass(frozen=True)
class Import:
    """One import that a module makes: of what, and whether importing the module is enough to make it."""

    target: str
    at_once: bool = False


class House:
    """A package, read from its files."""

    def __init__(self, package: Path) -> None:
        self.texts = {_name_of(path, package): path.read_text() for path in sorted(package.rglob('*.py'))}
        self.packages = {_name_of(path, package) for path in package.rglob('__init__.py')}
        self.trees = {name: parsed(text) for name, text in self.texts.items()}
        self.public = _table(self.trees[NAME])
        self.imports = {name: frozenset(self._imports(name)) for name in self.trees}

    def own(self, name: str) -> list[str]:
        """The package's own modules that a module imports, itself left out."""
        return sorted({found.target for found in self.imports[name] if found.target in self.texts} - {name})

    def _imports(self, name: str) -> Iterator[Import]:
        text = self.texts[name]
        later, prose, named = _later(text), _docstrings(text), self.texts.keys() - set(COMPOSITION)
        for node in nodes(text):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node not in later) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(name, node.module or '', node.level)
                yield from (Import(self._resolved(base, alias.name), node not in later) for alias in node.names)
            elif _called(node) in ('import_module', '__import__') and node.args:
                yield from (Import(target) for target in self._matching(name, node.args[0]))
            elif isinstance(node, ast.Constant) and node not in prose and node.value in named:
                yield Import(node.value)  # a module's name in a table is as good as an import

    def _absolute(self, name: str, module: str, level: int) -> str:
        if not level:
            return module
        parts = name.split('.')
        parts = parts[: len(parts) - level + (name in self.packages)]
        return '.'.join([*parts, *([module] if module else [])])

    def _resolved(self, base: str, item: str) -> str:
        """What ``from base import item`` imports: a module, the one where the public API finds the item, or base."""
        if f'{base}.{item}' in self.texts:
            return f'{base}.{item}'
        return self.public.get(item, '') if base == NAME else base

    def _matching(self, name: str, argument: ast.expr) -> list[str]:
        """The own modules that ``import_module(argument)`` may mean; what is filled in may be anything."""
        if isinstance(argument, ast.Constant):
            text = str(argument.value)
            level = len(text) - len(text.lstrip('.'))
            return [self._absolute(name, text[level:], level)]
        if isinstance(argument, ast.JoinedStr):
            pattern = ''.join(_filled(part, name) for part in argument.values)
            return [target for target in fnmatch.filter(self.texts, pattern) if target != name]
        return []

    def at_once(self, name: str) -> dict[str, str]:
        """All that is imported by importing a module, with the packages around it: target -> who imports it."""
        found, waiting = {}, [name]
        while waiting:
            current = waiting.pop()
            around = [current.rsplit('.', n)[0] for n in range(1, current.count('.') + 1)]
            targets = [i.target for i in self.imports.get(current, ()) if i.at_once]
            for target in (*around, *targets):
                if target not in found:
                    found[target] = current
                    waiting.append(target)
        return found


def findings(package: Path) -> set[str]:
    """What breaks the rules, in words without numbers, so that a sin is the same while it only shrinks."""
    house = House(package)
    rules = (_arrows, _circles, _host, _torch, _attacks, _public_half, _derivation, _sizes, _words)
    return {found for rule in rules for found in rule(house)}


def room_of(name: str) -> str:
    return name.split('.')[1] if '.' in name else ''


def _arrows(house: House) -> Iterator[str]:
    for name in house.texts:
        if name in COMPOSITION:
            continue
        if room_of(name) not in RANKS:
            yield f'no room in the chain: {name}'
            continue
        rank = RANKS[room_of(name)]
        for target in house.own(name):
            if target in COMPOSITION:
                yield f'imports the composition root: {name} -> {target}'
            elif room_of(target) != room_of(name) and RANKS.get(room_of(target), -1) >= rank:
                yield f'arrow upwards: {name} -> {target}'


def _circles(house: House) -> Iterator[str]:
    reached = {name: _reach(house, name) for name in house.texts if name not in COMPOSITION}
    circles = set()
    for name, reach in reached.items():
        if name in reach:
            circles.add(frozenset(other for other in reach if name in reached[other]))
    yield from (f'circle: {", ".join(sorted(circle))}' for circle in circles)


def _reach(house: House, name: str) -> set[str]:
    found, waiting = set(), [name]
    while waiting:
        for target in house.own(waiting.pop()):
            if target not in found and target not in COMPOSITION:
                found.add(target)
                waiting.append(target)
    return found


def _host(house: House) -> Iterator[str]:
    for name in house.texts:
        if name not in COMPOSITION and RANKS.get(room_of(name), 0) < RANKS['mm']:
            used = {found.target.split('.')[0] for found in house.imports[name]} & set(HOST)
            yield from (f'host below mm: {name} imports {host}' for host in sorted(used))


def _torch(house: House) -> Iterator[str]:
    for name in house.texts:
        if room_of(name) in ('keys', 'stamp', 'envelope', 'wrapping') or name in TORCHLESS:
            if any(found.target.split('.')[0] == 'torch' for found in house.imports[name]):
                yield f'torch: {name}'
            via = next((by for target, by in house.at_once(name).items() if target.split('.')[0] == 'torch'), name)
            if via != name:
                yield f'torch: {name}, by way of {via}'


def _attacks(house: House) -> Iterator[str]:
    for name in house.texts:
        if room_of(name) == 'audit' and 'attacks' in name.split('.'):
            for target in house.own(name):
                parts = target.split('.')
                if room_of(target) in ('keys', 'bind', 'runtime') or parts[-1].startswith('referee'):
                    yield f'an attack that knows too much: {name} -> {target}'


def _public_half(house: House) -> Iterator[str]:
    for name in house.texts:
        if room_of(name) in ('model', 'maps', 'envelope', 'stamp'):
            for target in house.own(name):
                if room_of(target) == 'keys' and target not in KEYLESS:
                    yield f'the public half sees a key: {name} -> {target}'


def _derivation(house: House) -> Iterator[str]:
    """Keys are made of keys in bind and seal alone; no secret is drawn by the generators of torch, numpy and random."""
    generators = {'default_rng', 'rand', 'randn', 'randint', 'randperm', 'manual_seed'}
    for name, text in house.texts.items():
        called = {_called(node) for node in nodes(text)}
        if room_of(name) not in ('keys', 'bind', 'seal') and called & {'KeyStream', 'subkey'}:
            yield f'derives from keys: {name}'
        elsewhere = called & generators or Import('random', True) in house.imports[name]
        if room_of(name) in ('keys', 'maps', 'bind', 'stamp', 'seal') and elsewhere:
            yield f'draws by other generators: {name}'


def _sizes(house: House) -> Iterator[str]:
    for name, text in house.texts.items():
        if len(text.splitlines()) > LINES:
            yield f'long file: {name}'
        for path, node in _functions(house.trees[name]):
            if node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                yield f'long function: {name}.{path}'
    if sum(len(text.splitlines()) for text in house.texts.values()) > TOTAL:
        yield f'long package: more than {TOTAL} lines'


def _words(house: House) -> Iterator[str]:
    for name, tree in house.trees.items():
        if not ast.get_docstring(tree):
            yield f'no docstring: {name}'
        for node in nodes(house.texts[name]):
            if isinstance(node, ast.Assert) and ast.unparse(node.test).endswith(' is not None'):
                yield f'assert is not None: {name}'


def _functions(tree: ast.AST, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        here = (*path, node.name) if named else path
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield '.'.join(here), node
        yield from _functions(node, here)


@functools.cache
def _later(text: str) -> frozenset[ast.AST]:
    """The nodes that do not run when the module is imported: those in functions and under TYPE_CHECKING."""
    found: set[ast.AST] = set()
    for node in nodes(text):
        typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith('TYPE_CHECKING')
        if typing or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            found.update(inner for part in (node.body if typing else [node]) for inner in ast.walk(part))
    return frozenset(found)


@functools.cache
def _docstrings(text: str) -> frozenset[ast.AST]:
    return frozenset(node.value for node in nodes(text) if isinstance(node, ast.Expr))


def _called(node: ast.AST) -> str:
    """The last name of what is called, where the node is a call."""
    if not isinstance(node, ast.Call):
        return ''
    return getattr(node.func, 'attr', getattr(node.func, 'id', ''))


def _filled(part: ast.expr, name: str) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    return name if ast.unparse(part.value) == '__name__' else '*'


def _table(tree: ast.Module) -> dict[str, str]:
    """The public API: name -> the module that it is taken from on first use."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '_WHERE':
            return {name: f'{NAME}.{module}' for name, module in ast.literal_eval(node.value).items()}
    return {}


def _name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix('').parts
    return '.'.join([NAME, *(parts[:-1] if parts[-1] == '__init__' else parts)])


def known_sins() -> set[str]:
    """What is still allowed to break the rules while the house is being built."""
    return set(json.loads(SINS.read_text())) if SINS.exists() else set()


def main() -> None:
    found = findings(ROOT / NAME)
    print(*sorted(found), sep='\n')
    if '--shrink' in sys.argv[1:]:
        SINS.write_text(json.dumps(sorted(found & known_sins()), indent=1) + '\n')


if __name__ == '__main__':
    main()
