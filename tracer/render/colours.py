"""From relevance to colour: one scale for what is drawn together, safe for constant and signed maps."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxplain.errors import OutputError

Array = NDArray[Any]

_ROUNDING = 1e-6
"""Negative values below this part of the largest one are rounding, not sign."""

_KIND_NAMES = {
    "self": "self-attention",
    "co": "co-attention",
    "encoder_decoder": "encoder-decoder attention",
    "mixing": "token mixing (no attention)",
}


def kind_name(kind: str) -> str:
    """A kind of attention in words."""
    return _KIND_NAMES.get(kind, kind.replace("_", " "))


def to_array(values: Tensor) -> Array:
    """A tensor of any device and dtype as numpy; float64 stays, other floats become float32."""
    import torch

    values = values.detach().cpu()
    kept = values.dtype == torch.float64 or not values.is_floating_point()
    return np.asarray(values.numpy() if kept else values.float().numpy())


@dataclass(frozen=True)
class Scale:
    """The range that colours stand for: ``low`` to ``high``, or ``-high`` to ``high`` around zero if signed.

    The smallest value has no colour, and the largest one as much as it stands out: values that differ by a
    tenth of the largest differ by a tenth of the colours. So what is nearly even looks so.

    Example:
        >>> Scale.of(np.array([0.0, 4.0])).unit(np.array([3.0]))
        array([0.75])
        >>> Scale.of(np.array([2.0, 4.0])).unit(np.array([4.0]))
        array([0.5])
        >>> Scale.of(np.array([2.0, 4.0])).stretched().unit(np.array([4.0]))
        array([1.])
        >>> Scale.of(np.array([2.0, 2.0])).unit(np.array([2.0]))
        array([0.])
    """

    low: float
    high: float
    signed: bool
    colours: str = ""
    """A colour map of matplotlib; empty for fxplain's own."""
    opacity: float = 0.75
    """Of the largest value, over a picture."""
    stretch: bool = False
    """Whether the largest value has the full colour, however little it stands out."""

    @classmethod
    def of(cls, values: Array, aside: NDArray[np.bool_] | None = None) -> Scale:
        """The scale of these values; those marked in ``aside`` do not count, nor do NaN and infinities.

        A token that the score is read from carries its own identity entry, many times larger than all
        the rest; set aside, it does not wash the other tokens out.
        """
        counted = np.asarray(values, dtype=np.float64).ravel()
        if aside is not None and not aside.all():
            counted = counted[~aside.ravel()]
        counted = counted[np.isfinite(counted)]
        if not counted.size:
            return cls(0.0, 0.0, signed=False)
        low, high = float(counted.min()), float(counted.max())
        if low < -_ROUNDING * max(high, 0.0) and low < 0.0:
            bound = max(abs(low), abs(high))
            return cls(-bound, bound, signed=True)
        return cls(low, high, signed=False)

    @property
    def ends(self) -> tuple[str, str]:
        """Both ends in words; one that is tiny beside the other is rounding, and written as 0."""
        least = 1e-5 * max(abs(self.low), abs(self.high))
        low, high = (0.0 if abs(end) <= least else end for end in (self.low, self.high))
        return number(low), number(high)

    @property
    def constant(self) -> bool:
        """Whether all values are (up to rounding) one: then there is nothing to colour."""
        return self.high - self.low <= 1e-12 * max(abs(self.low), abs(self.high))

    @property
    def reach(self) -> float:
        """The colour of the largest value, 0 to 1: the part of it by which it is larger than the smallest."""
        if self.signed or self.stretch or self.high <= 0:
            return 1.0
        return min((self.high - self.low) / self.high, 1.0)

    def stretched(self) -> Scale:
        """The same with all colours used, however even the values are."""
        return replace(self, stretch=True)

    def unit(self, values: Array) -> Array:
        """Values in [0, 1], or in [-1, 1] if signed; a constant map gives zeros, never NaN."""
        values = np.nan_to_num(np.asarray(values, dtype=np.float64), posinf=self.high, neginf=self.low)
        if self.constant:
            return np.zeros_like(values)
        if self.signed:
            return np.clip(values / self.high, -1.0, 1.0)
        return self.reach * np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)


@functools.cache
def _lut(signed: bool, colours: str) -> Array:
    """256 colours [256, 3] in 0..1: dark to bright, or blue over white to red for signed values.

    Raises:
        OutputError: matplotlib has no colour map of that name.
    """
    from matplotlib import colormaps

    name = colours or ("bwr" if signed else "inferno")
    if name not in colormaps:
        close = ", ".join(difflib.get_close_matches(name, list(colormaps), n=4))
        raise OutputError(
            f"there is no colour map {name!r}",
            expected="one of matplotlib's, such as inferno, viridis, turbo",
            found=repr(name),
            hint=f"did you mean {close}?" if close else None,
        )
    return np.asarray(colormaps[name](np.linspace(0.0, 1.0, 256)))[:, :3]


def heat(scale: Scale, unit: Array) -> tuple[Array, Array]:
    """Colours [..., 3] in 0..1 and opacity [...] for values given by :meth:`Scale.unit`."""
    position = (unit + 1.0) / 2.0 if scale.signed else unit
    colour = _lut(scale.signed, scale.colours)[np.rint(position * 255.0).astype(np.intp)]
    return colour, scale.opacity * np.abs(unit)


def css_gradient(scale: Scale) -> str:
    """The colour bar as a CSS value, left to right."""
    stops = _lut(scale.signed, scale.colours)[np.linspace(0, 255 * scale.reach, 9).astype(np.intp)]
    colours = ["rgb({:.0f} {:.0f} {:.0f})".format(*(stop * 255.0)) for stop in stops]
    return f"linear-gradient(to right, {', '.join(colours)})"


def number(value: float) -> str:
    """A number as people read it: four significant digits."""
    return f"{value:.4g}"
