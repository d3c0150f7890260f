"""Runs of an audit as jobs: in other processes they give the same figures, and what is finished is taken over."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from keyseg_mm import write_key_file
from keyseg_mm.audit.engine.attack import ModelSuite
from keyseg_mm.audit.engine.audit import Job, audit, perform
from keyseg_mm.audit.engine.executor import make_executor
from keyseg_mm.audit.engine.runner import Runner
from keyseg_mm.audit.model.audit import ModelOrder
from keyseg_mm.errors import KeyFileError

LIMITS = ModelSuite(1, 60.0, 2, 2, 64, (0.5,))


@pytest.fixture
def order(files, key_file):
    named = {'config': files / 'plain.py', 'checkpoint': files / 'locked.pth', 'public': files / 'public.pth'}
    return ModelOrder(**named, key=f'file:{key_file}', out=files / 'out', limits=LIMITS, bars=False)


def figures(report):
    """What does not hang on the clock."""
    return [(one.about, one.digest, one.score, one.pictures, one.notes != '') for one in report.outcomes]


def test_jobs_give_the_figures_of_a_sequence(order, files, monkeypatch):
    alone, _ = audit(order)
    assert len(alone.outcomes) > 12 and len({one.about.name for one in alone.outcomes}) > 10
    beside, said = dataclasses.replace(order, out=files / 'jobs'), []
    with make_executor(2) as executor:
        found, _ = audit(beside, executor=executor, say=said.append)
    assert figures(found) == figures(alone)
    assert any(text.startswith(f'{len(found.outcomes)}/{len(found.outcomes)}') for text in said)
    monkeypatch.setattr(Runner, 'attempt', lambda *_: pytest.fail('a finished run was run again'))
    with make_executor(2) as executor:
        assert figures(audit(beside, executor=executor)[0]) == figures(alone)  # no process is started


def test_a_job_holds_no_key_and_says_where_it_lies(order, key):
    job = pickle.loads(pickle.dumps(Job(order, 'attack-random-keys-file')))  # noqa: S301
    assert job.order == order and key.public_id not in str(job)
    outcome = perform(job)
    assert outcome.about.name == 'random-keys' and outcome.score.recovery < 1


def test_a_key_that_other_processes_cannot_read_is_refused_before_they_start(order, key, files):
    write_key_file(files / 'sealed.key', key, passphrase='secret')
    sealed = dataclasses.replace(order, key=f'file:{files / "sealed.key"}')
    with make_executor(2) as executor, pytest.raises(KeyFileError, match='passphrase'):
        audit(sealed, key, executor)
