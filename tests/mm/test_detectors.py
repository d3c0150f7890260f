"""A detector of mmdet is protected as a segmentor is; benchmarks/others trains one by the tools of mmdet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from keyseg_mm import Point, SecretKey, lock, plan_lock, unlock, write_key_file
from keyseg_mm.mm.registry import MODELS
from keyseg_mm.runtime.attach import protections
from tests.support.proofs import prove

mmdet = pytest.importorskip('mmdet')
KEY = SecretKey(bytes(range(32)))
STOCK = Path(mmdet.__file__).parent / '.mim' / 'configs'
CONFIG = Path(__file__).parents[2] / 'configs' / 'mmdet' / 'retinanet' / 'keyed_retinanet_r18_fpn_1x_coco.py'
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _scope():
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def cfg(tmp_path) -> ConfigDict:
    """The model of the protected config, a quarter as wide."""
    model = Config.fromfile(str(CONFIG), import_custom_modules=False).model
    model.backbone.update(init_cfg=None, base_channels=16, frozen_stages=-1, norm_eval=False)
    model.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
    model.bbox_head.update(num_classes=3, in_channels=32, feat_channels=32, stacked_convs=1)
    write_key_file(tmp_path / 'key', KEY)
    model.protection.key = f'file:{tmp_path}/key'
    return model


def plain_of(cfg: ConfigDict):
    plain = ConfigDict({name: value for name, value in cfg.items() if name != 'protection'})
    plain.type = plain.pop('of')
    torch.manual_seed(0)
    model = MODELS.build(plain)
    model.init_weights()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and 'bbox_head' in name:
                weight.mul_(20)  # the host's begin next to nothing
    return model.eval()


def samples():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    found = []
    for _ in IMAGES:
        meta = dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), batch_input_shape=(64, 64))
        sample = DetDataSample(metainfo={**meta, 'scale_factor': (1.0, 1.0)})
        boxes, labels = torch.tensor([[4.0, 4, 40, 40]]), torch.tensor([1])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
        found.append(sample)
    return found


def scores(model):
    with torch.no_grad():
        return torch.cat([level.flatten() for maps in model(IMAGES, mode='tensor') for level in maps])


def loss(model):
    found = model.train().loss(IMAGES, samples())
    return sum(sum(value) if isinstance(value, list) else value for value in found.values())


def gap(one, other) -> float:
    return float((one - other).norm() / other.norm())


def test_a_detector_is_locked_run_and_trained(cfg):
    plain = plain_of(cfg)
    want, state = scores(plain), {name: value.clone() for name, value in plain.state_dict().items()}
    plan = plan_lock(plain)
    assert len(plan.entries) > 25 and not plan.left_out
    locked = lock(state, plain, KEY)
    keyed = MODELS.build(cfg).eval()
    assert type(keyed).__name__ == 'RetinaNet' and len(protections(keyed)[0].encryptors) == len(plan.entries)
    keyed.load_state_dict(locked)
    without = plain_of(cfg)
    without.load_state_dict({name: locked[name] for name in state})
    assert gap(scores(without), want) > 0.1
    assert gap(scores(keyed), want) < 1e-5
    assert all(torch.equal(value, state[name]) for name, value in unlock(locked, KEY).items())
    with torch.no_grad():
        found = keyed.predict(IMAGES, samples())
    assert [len(one.pred_instances) for one in found] == [
        len(s.pred_instances) for s in plain.predict(IMAGES, samples())
    ]
    one, other = loss(keyed), loss(plain)
    assert float(abs(one - other) / other) < 1e-4
    one.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in keyed.parameters() if p.requires_grad)


@pytest.mark.parametrize('name', ['faster_rcnn/faster-rcnn_r50_fpn_1x_coco', 'detr/detr_r50_8xb2-150e_coco'])
def test_those_that_propose_boxes_or_ask_for_them_are_proved(name):
    """They want data samples with the images."""
    model = Config.fromfile(str(STOCK / f'{name}.py'), import_custom_modules=False).model
    model.backbone.update(init_cfg=None, depth=18, base_channels=16, frozen_stages=-1, norm_eval=False)
    model.neck.in_channels = [16, 32, 64, 128][-len(model.neck.in_channels) :]
    torch.manual_seed(0)
    plain = MODELS.build(model)
    for weight in plain.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=(len(weight) / weight.numel()) ** 0.5)
    plan = plan_lock(plain)
    assert {point.name.partition('.')[0] for point in map(Point.parse, (entry.point for entry in plan.maps))} >= {
        'backbone', 'neck', 'roi_head' if 'rcnn' in name else 'decoder',
    }  # fmt: skip
    proof = prove(plain, plain.state_dict(), plan, KEY, bytes(16))
    assert proof.plan.entries == plan.entries
    assert proof.with_key.error < 1e-4 and proof.without['without it'].error > 0.1
