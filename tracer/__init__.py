"""fxplain explains a prediction of any PyTorch transformer, with no adapter written for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxplain import adapters, demo, errors, evaluate, targets
    from fxplain.adapters.loaded import Loaded, LoadOptions
    from fxplain.attention.records import Attention, CensusEntry, Mixing, Stream, TokenSpace
    from fxplain.attribution.knock_out import KnockOut
    from fxplain.attribution.table import methods
    from fxplain.comparison import Comparison
    from fxplain.display import Display, Look, Series
    from fxplain.errors import (
        CaptureError,
        DeviceError,
        FxplainError,
        InputError,
        LoadError,
        MethodError,
        NoAttentionError,
        NonFiniteError,
        OutputError,
        TargetError,
        UnknownNameError,
        UnknownOpError,
        UnsafeFileError,
        VerificationError,
    )
    from fxplain.explainer.explainer import Explainer
    from fxplain.explainer.explanation import Explanation
    from fxplain.explainer.generated import Generated
    from fxplain.explainer.load import load
    from fxplain.explainer.ranked import Ranked
    from fxplain.graph_page import GraphPage
    from fxplain.many.on_ray import explain_dataset_on_ray
    from fxplain.many.records import Explained, Sample
    from fxplain.many.run import explain_all, explain_dataset
    from fxplain.many.store import Explanations
    from fxplain.render.words import TokenText
    from fxplain.result import Relevance, Result
    from fxplain.targets import contrast
    from fxplain.traced import Traced, compare, explain, trace
    from fxplain.verdict import Finding, Verdict, check
    from fxplain.walk import Walk
    from fxplain.why import Why

__version__ = "0.1.0"

_HOMES = {
    "Attention": "attention.records",
    "CaptureError": "errors",
    "CensusEntry": "attention.records",
    "Comparison": "comparison",
    "DeviceError": "errors",
    "Display": "display",
    "Look": "display",
    "Explained": "many.records",
    "Explainer": "explainer.explainer",
    "Explanation": "explainer.explanation",
    "Explanations": "many.store",
    "Finding": "verdict",
    "Generated": "explainer.generated",
    "FxplainError": "errors",
    "GraphPage": "graph_page",
    "KnockOut": "attribution.knock_out",
    "InputError": "errors",
    "LoadError": "errors",
    "LoadOptions": "adapters.loaded",
    "Loaded": "adapters.loaded",
    "MethodError": "errors",
    "Mixing": "attention.records",
    "NoAttentionError": "errors",
    "NonFiniteError": "errors",
    "OutputError": "errors",
    "Ranked": "explainer.ranked",
    "Relevance": "result",
    "Result": "result",
    "Sample": "many.records",
    "Series": "display",
    "Stream": "attention.records",
    "TargetError": "errors",
    "TokenSpace": "attention.records",
    "TokenText": "render.words",
    "Traced": "traced",
    "UnknownNameError": "errors",
    "UnknownOpError": "errors",
    "UnsafeFileError": "errors",
    "Verdict": "verdict",
    "VerificationError": "errors",
    "Walk": "walk",
    "Why": "why",
    "check": "verdict",
    "compare": "traced",
    "contrast": "targets",
    "explain": "traced",
    "explain_all": "many.run",
    "explain_dataset": "many.run",
    "explain_dataset_on_ray": "many.on_ray",
    "load": "explainer.load",
    "methods": "attribution.table",
    "trace": "traced",
}
"""Public name -> the module of this package that has it."""

_MODULES = ("adapters", "demo", "errors", "evaluate", "targets")
"""Modules that are public as a whole: ``fxplain.adapters.load`` loads a model by name."""

__all__ = [
    "Attention",
    "CaptureError",
    "CensusEntry",
    "Comparison",
    "DeviceError",
    "Display",
    "Explained",
    "Explainer",
    "Explanation",
    "Explanations",
    "Finding",
    "FxplainError",
    "Generated",
    "GraphPage",
    "InputError",
    "KnockOut",
    "LoadError",
    "LoadOptions",
    "Loaded",
    "Look",
    "MethodError",
    "Mixing",
    "NoAttentionError",
    "NonFiniteError",
    "OutputError",
    "Ranked",
    "Relevance",
    "Result",
    "Sample",
    "Series",
    "Stream",
    "TargetError",
    "TokenSpace",
    "TokenText",
    "Traced",
    "UnknownNameError",
    "UnknownOpError",
    "UnsafeFileError",
    "Verdict",
    "VerificationError",
    "Walk",
    "Why",
    "__version__",
    "adapters",
    "check",
    "compare",
    "contrast",
    "demo",
    "errors",
    "evaluate",
    "explain",
    "explain_all",
    "explain_dataset",
    "explain_dataset_on_ray",
    "load",
    "methods",
    "targets",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is asked for: ``import fxplain`` alone stays light."""
    if name in _HOMES:
        return getattr(import_module(f"fxplain.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"fxplain.{name}")
    raise AttributeError(f"module 'fxplain' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, and no others."""
    return sorted(__all__)
