"""Whether a method can be applied to a model, found out before anything long begins."""

from __future__ import annotations

from mmengine.config import Config

from keyseg_mm.compare.methods import Method
from keyseg_mm.keys.key import wrong_key
from keyseg_mm.locking import plan_lock
from keyseg_mm.mm.config import build_plain_model
from keyseg_mm.mm.dryrun import trace_module
from keyseg_mm.mm.keyed import check_options
from keyseg_mm.model.sites import resolve
from keyseg_mm.runtime.protection import attach


def check_applicable(method: Method, plain: Config, cfg: Config) -> None:
    """Find out whether a method can be applied to a model, before anything long begins.

    Args:
        method: the method.
        plain: the plain config.
        cfg: the method's.

    Raises:
        KeysegError: it can not, with the reason.
    """
    if not method.points:
        return
    model = build_plain_model(plain)
    assert method.transform is not None
    if method.lock:
        plan_lock(model, [method.points], method.transform)
        return
    check_options(cfg.model.protection)
    # any key will do: what is asked is whether the transform fits the maps
    attach(
        model, wrong_key('compare'), resolve(method.points, model, trace_module(model, heads=False)), method.transform
    )
