"""What fxplain raises: one tree, and every message says what, where, expected, found and the next step.

FxplainError
├── InputError            the inputs do not fit the model, or the model raised on them
├── CaptureError          no strategy could capture the model
├── VerificationError     the captured graph, or a rebuilt map, is not the model's
├── NoAttentionError      the model has no attention to explain
├── UnknownOpError        token labels were lost on the way to an attention
├── TargetError           the target is out of range, not differentiable, or depends on no attention
├── NonFiniteError        NaN or inf in weights, activations or gradients
├── DeviceError           the model lies on several devices
├── MethodError           no method of that name, or the method does not apply to this model
├── UnknownNameError      no token space or stream of that name (a KeyError too)
├── OutputError           a result or traced model cannot be written: suffix, folder, nothing to draw
└── LoadError             a file or name that gives no model
    └── UnsafeFileError   loading it would run code that nobody allowed
"""

from __future__ import annotations


class FxplainError(Exception):
    """Base of all errors of fxplain.

    Args:
        what: one sentence, what went wrong.
        where: node, module path or source line.
        expected: what would have been right.
        found: what was there instead.
        hint: the next step for the person who reads it.

    Example:
        >>> print(FxplainError("the target is out of range", expected="0 to 9", found="12"))
        the target is out of range
          expected: 0 to 9
          found: 12
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        details = {"where": where, "expected": expected, "found": found, "next step": hint}
        lines = [what] + [f"  {name}: {text}" for name, text in details.items() if text]
        super().__init__("\n".join(lines))


class InputError(FxplainError):
    """The inputs do not fit the model, or the model raised on them."""


class CaptureError(FxplainError):
    """No strategy could capture the model as a graph."""


class VerificationError(FxplainError):
    """The captured graph, or a map rebuilt from it, differs from the model."""


class NoAttentionError(FxplainError):
    """The model has no attention to explain."""


class UnknownOpError(FxplainError):
    """Token labels were lost at an operation without a transfer function."""


class TargetError(FxplainError):
    """The target is out of range, not differentiable, or depends on no attention."""


class NonFiniteError(FxplainError):
    """NaN or inf in weights, activations or gradients."""


class DeviceError(FxplainError):
    """The model lies on several devices."""


class MethodError(FxplainError):
    """No method of that name, or the method does not apply to this model."""


class UnknownNameError(FxplainError, KeyError):
    """No token space or stream of that name; a ``KeyError`` too, so that results behave as mappings."""

    # KeyError would print the message in quotes, with its line breaks escaped
    __str__ = Exception.__str__


class OutputError(FxplainError):
    """A result or traced model cannot be written: unknown suffix, missing folder, nothing to draw."""


class LoadError(FxplainError):
    """A file or name that gives no model."""


class UnsafeFileError(LoadError):
    """Loading the file would run code that nobody allowed."""


def first_line(error: BaseException) -> str:
    """Type and first line of another library's error, for the ``found`` of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
