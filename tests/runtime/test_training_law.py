"""Training behind an orthogonal map is the plain training in other coordinates: why protection costs no accuracy.

Initial weights are drawn alike for all channels, so those of a model behind fixed maps are, in distribution, locked
ones. From a locked start, training with the key does step by step what plain training does.
"""

from __future__ import annotations

import pytest
import torch
from mmseg.registry import MODELS

from keyseg_mm import attach, lock, stamps_of, unlock
from keyseg_mm.audit.model.training import segmentation_loss
from keyseg_mm.mm.dryrun import trace_module
from tests.support.audits import scenes, small_model_cfg

STEPS, SALT = 12, bytes(16)


def start():
    torch.manual_seed(0)
    model = MODELS.build(small_model_cfg())
    model.init_weights()
    return model


def train(model):
    """A few steps on the same pictures; the losses, and the state_dict afterwards."""
    losses, optimizer = [], torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    model.train()
    for step in range(STEPS):
        photos = scenes(4, seed=step)
        torch.manual_seed(step)  # dropout
        loss = segmentation_loss(model, photos.images, photos.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize('transform', ['ChannelPermutation', 'SignedChannelPermutation'])
@pytest.mark.parametrize('points', ['out:backbone:0', 'linear'])
def test_training_from_a_locked_start_is_the_plain_training(points, transform, key, other_key):
    plain = start()
    locked = lock(plain.state_dict(), plain, key, points, transform, SALT)
    plan = stamps_of(locked)['']
    protected = start()
    sites = {str(point): site for point, site in trace_module(protected).sites.items()}
    attach(protected, key, [sites[entry.point] for entry in plan.entries], plan.entries, salt=SALT)
    protected.load_state_dict(locked)
    (losses, trained), (with_key, found) = train(plain), train(protected)
    assert losses[-1] < losses[0] - 0.1
    assert with_key == pytest.approx(losses, rel=1e-3)
    found = unlock(found, key, plain)
    for name, value in trained.items():
        assert torch.allclose(found[name].double(), value.double(), atol=2e-3), name
    assert any(not torch.allclose(found[name].double(), locked[name].double(), atol=2e-3) for name in trained)

    stranger = start()  # from the plain start behind maps: a training of its own
    attach(stranger, other_key, [sites[entry.point] for entry in plan.entries], plan.entries, salt=SALT)
    assert train(stranger)[0] != pytest.approx(losses, rel=1e-3)
