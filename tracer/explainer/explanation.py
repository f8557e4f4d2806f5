"""An explanation with the words and pictures of its tokens: to be looked at, listed, saved and read again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor

from fxplain.display import Display, Look
from fxplain.explainer.tokens import TokenRelevance, evenly, frame, strongest, tokens_of
from fxplain.render.shown import sharpness
from fxplain.result import Result

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """A :class:`fxplain.Result` that knows the texts and pictures of its tokens. Made by an
    :class:`fxplain.Explainer`; in a notebook it shows itself.

    Example:
        >>> import fxplain, torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> explanation = fxplain.Explainer(model)(torch.randn(1, 5, 8), target=(0, 3))
        >>> len(explanation.tokens), explanation.top(1)[0].space
        (5, 'src')
    """

    result: Result
    """All numbers: relevance by token space, what was read, how far the graph is from the model."""
    display: Display
    """Texts, pictures and names, by token space."""

    @property
    def relevance(self) -> Mapping[str, Tensor]:
        """Token space -> [batch, tokens]."""
        return self.result.relevance

    @property
    def score(self) -> Tensor:
        """[batch]: what was explained, as the model gives it."""
        return self.result.score

    @property
    def target(self) -> Any:
        """Per sample the place of the score in the model's output."""
        return self.result.target

    @property
    def probability(self) -> float | None:
        """Of the first sample's class or word, where it has one."""
        return next((question.probability for question in self.result.questions), None)

    @property
    def questions(self) -> tuple[str, ...]:
        """Per sample, what its score answers."""
        return tuple(self.display.question(self.result.questions, i) for i in range(self.result.batch))

    @property
    def question(self) -> str:
        """What was explained, in words; a line for each sample."""
        return "\n".join(self.questions)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        return (*self.display.notes, *self.result.notes)

    @cached_property
    def tokens(self) -> tuple[TokenRelevance, ...]:
        """Every token of every input, in order, with its text and relevance."""
        return tokens_of(self.result, self.display)

    def top(self, count: int = 10, sample: int = 0) -> tuple[TokenRelevance, ...]:
        """The most relevant tokens of one sample, the first one first."""
        return strongest((token for token in self.tokens if token.sample == sample), count)

    def sharpness(self, sample: int = 0) -> float:
        """As if so many tokens shared the relevance evenly: 1 where all lies on one token, the number of
        tokens where all matter alike (the exponential of the entropy of their shares)."""
        return evenly(token for token in self.tokens if token.sample == sample)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures as plain values, as the ``.json`` file holds it."""
        from fxplain.render.save import result_json

        return result_json(self.result, self.display)

    def to_pandas(self) -> pandas.DataFrame:
        """:attr:`tokens` as a table.

        Raises:
            OutputError: pandas is not installed.
        """
        return frame(self.tokens)

    def heat_map(self, name: str | None = None, sample: int = 0) -> NDArray[Any]:
        """The relevance on one picture, ``[rows, columns]``, or on a video, ``[frames, rows, columns]``.

        Of a model with several scales it is one map of the finest one: what a token of a coarser scale has is
        spread evenly over its part of the picture, and all scales are added up.

        Args:
            name: of the input, or of one token space; None: the only picture.
            sample: of the batch.

        Raises:
            UnknownNameError: there is no such picture, or there are several.
        """
        from fxplain.render.scales import heat_map

        return heat_map(self.result, name, sample)

    def save(self, path: str | os.PathLike[str], look: Look | None = None) -> None:
        """Write it to a file; the suffix says how.

        Args:
            path: ``.json``, ``.npz`` and ``.safetensors`` are read back by :func:`fxplain.load`; ``.html`` is
                a page; ``.png`` the overlays on pictures.
            look: how relevance is laid over pictures: colour map, opacity, or the bare map.

        Raises:
            OutputError: another suffix, no such folder, nothing to draw, or the file cannot be written.
        """
        self.result.save(path, self.display if look is None else replace(self.display, look=look))

    def plot(self, look: Look | None = None) -> Figure:
        """A matplotlib figure: overlays where there are pictures, bars over sounds and series, else rows of
        coloured tokens."""
        from fxplain.render.heatmap import heatmap_figure
        from fxplain.render.picture import picture_figure
        from fxplain.render.series.figure import series_figure

        display = self.display if look is None else replace(self.display, look=look)
        drawn = picture_figure(self.result, display) if display.images or display.laid else None
        drawn = drawn or series_figure(self.result, display)
        return drawn or heatmap_figure({self.result.method: self.result}, display)

    def _repr_html_(self) -> str:
        from fxplain.render.notebook import explanation_html

        return explanation_html(self.result, self.display)

    def __repr__(self) -> str:
        lines = [f"Explanation of {question or 'a score'}" for question in self.questions[:1]]
        lines = lines or [f"Explanation of target {self.display.target_name(self.target, 0)}"]
        if self.result.batch > 1:
            lines[0] += f" (and of {self.result.batch - 1} more samples)"
        lines += [f"  {token.share:6.1%}  {token}" for token in self.top(5)]
        sharp = sharpness(self.result, 0)
        lines += [] if sharp is None else [f"  sharpness: {sharp}"]
        return "\n".join(lines)
