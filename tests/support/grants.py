"""Grants of a case by short names, as tests name them."""

from __future__ import annotations

from keyseg_mm.audit.model.attack import Case, LabelledPhotos, Photos, PublicWeights, SecondFile

KINDS = {
    'labelled': lambda photos: photos,
    'unlabelled': lambda photos: Photos(photos.images),
    'public': PublicWeights,
    'second': lambda pair: SecondFile(*pair),
}


def grants(**named):
    """Grants of these kinds; photos are given as they are, and lose their labels where they are to have none."""
    assert isinstance(named.get('labelled'), (LabelledPhotos, type(None)))
    return tuple(KINDS[name](value) for name, value in named.items())


def granting(case: Case, **named) -> Case:
    """A case with more grants."""
    return case.granting(*grants(**named))
