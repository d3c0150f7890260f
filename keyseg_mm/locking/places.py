"""Sites as a stamp tells them: written down when a model is protected, and read when it is loaded, without a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from keyseg_mm.entries import MapEntry
from keyseg_mm.errors import PointError
from keyseg_mm.model.layers import Kind, kind_of
from keyseg_mm.model.points import Point
from keyseg_mm.model.sites import Site, module_at
from keyseg_mm.stamp import Stamp


def entry_at(site: Site, transform: Mapping[str, Any], weights: tuple[str, ...] = (), along: int = 1) -> MapEntry:
    """The entry of a site.

    Args:
        site: of a dry run.
        transform: in normal form.
        weights: that carry the map, where they are known.
        along: their dimension that does.
    """
    spec = copy.deepcopy(dict(transform))
    return MapEntry(str(site.point), site.channels, spec, weights, along, site.dim, site.runs, site.forms)


def sites_of_stamp(model: nn.Module, stamp: Stamp) -> list[Site]:
    """Where the maps of a stamp are in a model, in the same order. The model is looked at, and does not run.

    Raises:
        PointError: modules that are not there, or take no such point; all of them in one message.
    """
    found, problems = [], []
    for entry in stamp.maps:
        point = Point.parse(entry.point)
        try:
            layer = module_at(point, model)
        except PointError as error:
            problems.append(str(error))
        else:
            inputs = (kind_of(layer) or Kind()).inputs
            name = type(layer).__name__
            found.append(Site(point, entry.channels, entry.dim, (), name, entry.runs, entry.forms, inputs))
    if problems:
        raise PointError('; '.join(problems))
    return found
