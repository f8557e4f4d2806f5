"""Relevancy worked out by hand, model by model, to hold the library against."""

from __future__ import annotations

from references.models import REFERENCES, doubled
from references.slow import Reference

__all__ = ["REFERENCES", "Reference", "doubled"]
