"""fxplain explains a prediction of any PyTorch transformer, with no adapter written for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxplain import evaluate
    from fxplain.attentions import Attention, CensusEntry, Mixing, Stream, TokenSpace
    from fxplain.comparison import Comparison
    from fxplain.errors import FxplainError
    from fxplain.many.on_ray import explain_dataset_on_ray
    from fxplain.many.records import Explained, Sample
    from fxplain.many.run import explain_all, explain_dataset
    from fxplain.many.store import Explanations
    from fxplain.method_table import methods
    from fxplain.result import Relevance, Result
    from fxplain.saved.files import load
    from fxplain.traced import Traced, compare, explain, trace
    from fxplain.verdict import Finding, Verdict, check

__version__ = "0.1.0"

_HOMES = {
    "Attention": "attentions",
    "CensusEntry": "attentions",
    "Comparison": "comparison",
    "Finding": "verdict",
    "FxplainError": "errors",
    "Mixing": "attentions",
    "Relevance": "result",
    "Result": "result",
    "Stream": "attentions",
    "TokenSpace": "attentions",
    "Traced": "traced",
    "Verdict": "verdict",
    "check": "verdict",
    "compare": "traced",
    "Explained": "many.records",
    "Explanations": "many.store",
    "Sample": "many.records",
    "explain": "traced",
    "explain_all": "many.run",
    "explain_dataset": "many.run",
    "explain_dataset_on_ray": "many.on_ray",
    "load": "saved.files",
    "methods": "method_table",
    "trace": "traced",
}

__all__ = [
    "Attention",
    "CensusEntry",
    "Comparison",
    "Explained",
    "Explanations",
    "Finding",
    "FxplainError",
    "Mixing",
    "Relevance",
    "Result",
    "Sample",
    "Stream",
    "TokenSpace",
    "Traced",
    "Verdict",
    "check",
    "compare",
    "evaluate",
    "explain",
    "explain_all",
    "explain_dataset",
    "explain_dataset_on_ray",
    "load",
    "methods",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: ``import fxplain`` alone stays light."""
    if name in _HOMES:
        return getattr(import_module(f"fxplain.{_HOMES[name]}"), name)
    if name == "evaluate":
        return import_module("fxplain.evaluate")
    raise AttributeError(f"module 'fxplain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "evaluate"])
