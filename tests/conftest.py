"""Shared fixtures: keys, tiny models and tiny Cityscapes-like data, all made on the spot."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

os.environ.setdefault('OMP_NUM_THREADS', '2')
os.environ.setdefault('MPLBACKEND', 'Agg')

import hypothesis
import pytest
import torch
from yapf.yapflib import yapf_api  # here, since test processes that first import it at one moment break its cache

import keyseg_mm.baselines  # noqa: F401 - its transforms
import keyseg_mm.mm  # noqa: F401 - the mends, before any config is read
from keyseg_mm import SecretKey, write_key_file
from keyseg_mm.mm.keyed import salt_of_run
from tests.support.data import write_tiny_ade20k, write_tiny_cityscapes
from tests.support.fixed import DRAWS, TICKS, Seconds, begin, put_back
from tests.support.pages import BROWSERS, find_browser

hypothesis.settings.register_profile('fixed', derandomize=True, deadline=None)
hypothesis.settings.load_profile('fixed')
os.urandom, time.monotonic = DRAWS, TICKS


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """What several tests share does not depend on the tests before it."""
    if fixturedef.scope != 'function':
        begin(fixturedef.argname)
        salt_of_run.cache_clear()
    return (yield)


@pytest.fixture(autouse=True)
def _the_same_every_time():
    begin('test')
    salt_of_run.cache_clear()
    with put_back():
        yield


@pytest.fixture(autouse=True, scope='session')
def _brisk_runner():
    """Leave out what takes a Runner seconds and says nothing: the report on compilers, layout of configs, garbage."""
    import mmengine.config.config as config
    import mmengine.dataset.base_dataset as base_dataset
    import mmengine.runner.runner as runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, 'collect_env', dict)
        patch.setattr(base_dataset, 'gc', SimpleNamespace(collect=int))  # for each data set that is read
        patch.setattr(runner, 'time', Seconds())
        for owner in (config, yapf_api):  # mmengine imports it at the top, onedl-mmengine at the call
            patch.setattr(owner, 'FormatCode', lambda text, **_: (text, True), raising=False)
        yield


@pytest.fixture
def key():
    return SecretKey(bytes(range(32)))


@pytest.fixture
def other_key():
    return SecretKey(bytes(range(1, 33)))


@pytest.fixture
def key_file(tmp_path, key):
    write_key_file(tmp_path / 'right.key', key)
    return tmp_path / 'right.key'


@pytest.fixture
def other_key_file(tmp_path, other_key):
    write_key_file(tmp_path / 'other.key', other_key)
    return tmp_path / 'other.key'


@pytest.fixture(scope='session')
def tiny_cityscapes(tmp_path_factory):
    return write_tiny_cityscapes(tmp_path_factory.mktemp('data') / 'cityscapes')


@pytest.fixture(scope='session')
def tiny_ade20k(tmp_path_factory):
    return write_tiny_ade20k(tmp_path_factory.mktemp('data') / 'ade20k')


@pytest.fixture
def image():
    torch.manual_seed(0)
    return torch.rand(2, 3, 64, 64)


@pytest.fixture(scope='session')
def browser():
    found = find_browser()
    if found is None:
        names = ', '.join(BROWSERS)
        pytest.skip(f'no browser to look with: none of {names} is installed (Debian: apt install chromium)')
    return found
