"""Relevancy worked out by hand, model by model, to hold the library against."""

from __future__ import annotations

from functools import cache

from zoo import Case, fresh

import fxplain
from references.models import REFERENCES, doubled
from references.slow import Reference


@cache
def exact(name: str) -> Case:
    """A model of the zoo in float64; the same for all tests of a process, so left as it is."""
    model, inputs, expected = fresh(name)  # its own: doubling changes the model
    return *doubled(model, inputs), expected


@cache
def exactly_traced(name: str) -> fxplain.Traced:
    """The same, traced once for all tests of a process."""
    return fxplain.trace(*exact(name)[:2])


__all__ = ["REFERENCES", "Reference", "doubled", "exact", "exactly_traced"]
