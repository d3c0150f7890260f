"""Ways to open a checkpoint by the host's Runner and inference APIs."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import MMSegInferencer, inference_model, init_model

from tests.support.configs import keyed_cfg, runner_cfg, tiny_model_cfg


def run(cfg: Config, what: str = 'train'):
    runner = Runner.from_cfg(cfg)
    return runner, getattr(runner, what)()


def keyed_run(data, work_dir, locator, iterations=4, **changes):
    model = keyed_cfg(tiny_model_cfg(), str(locator))
    return runner_cfg(data, work_dir, model, iterations, **changes)


def opened(config, checkpoint, key=None, **changes):
    cfg = Config.fromfile(str(config))
    cfg.load_from = str(checkpoint)
    if key is not None:
        cfg.model.protection.key = str(key)
    cfg.merge_from_dict(changes)
    return cfg


def predicted(model, picture):
    return inference_model(model, picture).seg_logits.data


# each path: how it opens a checkpoint with a locator, and gives logits or metrics to compare
def by_init_model(trained, locator, checkpoint):
    model = init_model(str(trained['config']), str(checkpoint), 'cpu', {'model.protection.key': locator})
    return predicted(model, trained['picture'])


def by_inferencer(trained, locator, checkpoint):
    cfg = Config.fromfile(str(trained['config']))
    cfg.model.protection.key = locator
    config = trained['folder'] / 'inferencer.py'
    cfg.dump(str(config))
    inferencer = MMSegInferencer(str(config), str(checkpoint), device='cpu')
    return predicted(inferencer.model, trained['picture'])


def by_runner_test(trained, locator, checkpoint):
    cfg = opened(trained['config'], checkpoint, locator)
    runner, metrics = run(cfg, 'test')
    assert metrics == run(cfg.copy(), 'test')[1]
    runner.model.cfg = runner.cfg
    return predicted(runner.model, trained['picture'])


def by_tta(trained, locator, checkpoint):
    cfg = opened(trained['config'], checkpoint, locator)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model
    runner, _ = run(cfg, 'test')
    runner.model.module.cfg = runner.cfg
    cfg.test_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    return predicted(runner.model.module, trained['picture'])


def by_resume(trained, locator, checkpoint):
    """Resume at the last iteration: nothing is trained any more, and the weights are those of the checkpoint."""
    cfg = opened(trained['config'], checkpoint, locator, resume=True)
    runner, _ = run(cfg, 'train')
    runner.model.cfg = runner.cfg
    return predicted(runner.model.eval(), trained['picture'])


def by_ema(trained, locator, checkpoint):
    """The EMA hook copies the model, loads the copy too, and swaps it in for testing."""
    cfg = opened(trained['config'], checkpoint, locator)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='EMAHook', strict_load=True)]
    runner, _ = run(cfg, 'test')
    ema = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook').ema_model.module
    ema.cfg = runner.cfg
    return predicted(ema.eval(), trained['picture'])
