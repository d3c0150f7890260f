"""Grants of a case by short names, as tests name them."""

from __future__ import annotations

from keyseg_mm.audit.model.attack import (
    Case,
    LabelledPhotos,
    LeakedRows,
    Oracle,
    OtherClasses,
    Photos,
    PublicWeights,
    Recording,
    SecondFile,
)

KINDS = {
    'labelled': lambda photos: photos,
    'unlabelled': lambda photos: photos,
    'public': PublicWeights,
    'second': lambda pair: SecondFile(*pair),
    'recorded': Recording,
    'oracle': Oracle,
    'leaked': lambda pair: LeakedRows(*pair),
    'classifier': OtherClasses,
}


def grants(**named):
    """Grants of these kinds; photos are given as they are."""
    for name, kind in (('labelled', LabelledPhotos), ('unlabelled', Photos)):
        assert isinstance(named.get(name), (kind, type(None)))
    return tuple(KINDS[name](value) for name, value in named.items())


def granting(case: Case, **named) -> Case:
    """A case with more grants."""
    return case.granting(*grants(**named))
