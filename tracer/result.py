"""What an explanation is: the relevance of every token to the score, and all that says what it is worth."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxplain.attention.records import Attention, Stream, TokenSpace
from fxplain.attribution.knock_out import KnockOut, chosen_tokens
from fxplain.errors import MethodError, UnknownNameError
from fxplain.questions import Question, name_of_function

if TYPE_CHECKING:
    from fxplain.display import Display

Readout = tuple[tuple[tuple[int, float], ...], ...]
"""The rows that were read: per sample, pairs of (token index, weight)."""


class Relevance(Mapping[str, Tensor]):
    """The relevance of every token, by token space: name -> tensor [batch, tokens], without unit.

    Args:
        values: space name -> [batch, tokens]; every space of ``spaces`` must be there.
        spaces: the token spaces, which know the grids.

    Raises:
        UnknownNameError: (a ``KeyError`` too) if a space of another name is asked for.

    Example:
        >>> space = TokenSpace("pixel_values", size=4, start=0, grid=(2, 2), origin="input", source="")
        >>> relevance = Relevance.from_rows(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), (space,))
        >>> relevance.grid("pixel_values").shape
        torch.Size([1, 2, 2])
    """

    def __init__(self, values: Mapping[str, Tensor], spaces: Iterable[TokenSpace]) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._values = {name: values[name] for name in self._spaces}
        for name, space in self._spaces.items():
            if tuple(self._values[name].shape[1:]) != (space.size,):
                shape = tuple(self._values[name].shape)
                raise ValueError(f"relevance of {name!r}: expected [batch, {space.size}], found {shape}")

    @classmethod
    def from_rows(cls, rows: Tensor, spaces: Iterable[TokenSpace]) -> Relevance:
        """Cut rows [batch, all tokens] of the relevancy matrix into the token spaces."""
        spaces = tuple(spaces)
        return cls({space.name: rows[:, space.start : space.start + space.size] for space in spaces}, spaces)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            raise _unknown("token space", name, self._values)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {tuple(values.shape)}" for name, values in self._values.items())
        return f"Relevance({sizes})"

    def grid(self, name: str) -> Tensor:
        """The relevance of one space in its own shape: [batch, T], [batch, H, W] or [batch, T, H, W]."""
        values = self[name]
        return values.reshape(values.shape[0], *self._spaces[name].grid)


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """One explanation of one batch: what was explained, the relevance of every token, and the evidence.

    Chefer, Gur, Wolf, ICCV 2021: the relevance of a token is its column of the relevancy matrix, read in
    the rows that the explained score was computed from.

    Example:
        >>> space = TokenSpace("input_ids", size=2, start=0, grid=(2,), origin="input", source="input_ids")
        >>> matrix = torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])
        >>> result = Result(
        ...     method="relevancy", score=torch.ones(1), target=((3,),), output="logits",
        ...     relevance=Relevance.from_rows(matrix[:, 0], (space,)), relevancy=matrix,
        ...     spaces=(space,), streams=(), readout=(((0, 1.0),),), attentions=(), verified=0.0, notes=(),
        ... )
        >>> result.relevance["input_ids"]
        tensor([[1.0000, 0.5000]])
        >>> result.matrix("input_ids", "input_ids").shape
        torch.Size([1, 2, 2])
    """

    method: str
    score: Tensor
    """[batch], in the unit of the model's output: the raw value that was explained."""
    target: Any
    """The resolved target, per sample."""
    output: str
    """Name of the model's output that the score was taken from."""
    relevance: Relevance
    relevancy: Tensor | None
    """[batch, N, N] at the readout, N = all tokens; None if the method keeps no matrix, or not yet."""
    spaces: tuple[TokenSpace, ...]
    streams: tuple[Stream, ...]
    readout: Readout
    attentions: tuple[Attention, ...]
    verified: float
    """The largest relative difference between the captured graph's output and the model's own, or between a
    fused attention's output and that of its rebuilt map."""
    notes: tuple[str, ...]
    """What a reader must know: fallbacks taken, steps that are approximate."""
    aside: bool = True
    """Whether the token of a row that is read has no relevance of its own: its entry is set aside."""
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    """Of methods that go to the inputs' own elements (pixels): input -> relevance, of the input's shape."""

    mode: str = ""
    """``rows`` if the rows that are read were carried back over the attentions one by one, ``matrix`` if all
    of R was worked out; empty for methods without R."""
    questions: tuple[Question, ...] = ()
    """Per sample, what its score answers: ``str(question)`` says it in words."""
    later: Callable[[], Tensor] | None = field(default=None, repr=False)
    """Works out :attr:`relevancy` where it was not needed."""
    without: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    """From [batch, tokens] bool to [batch]: the scores where no attention reads those tokens."""

    def __getstate__(self) -> dict[str, Any]:
        """A result is data: a copy, or a pickle, holds no model and no function of the user's."""
        state = {**vars(self), "later": None, "without": None}
        return state | {"target": name_of_function(self.target)} if callable(self.target) else state

    @property
    def question(self) -> str:
        """What was explained, in words; a line for each sample."""
        return "\n".join(str(question) for question in self.questions)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return int(self.score.shape[0])

    def grid(self, name: str) -> Tensor:
        """The relevance of one token space in its own shape: [batch, T], [batch, H, W], [batch, T, H, W]."""
        return self.relevance.grid(name)

    def matrix(self, queries: str, keys: str) -> Tensor:
        """The block of the relevancy matrix between two token spaces or streams: [batch, q, k].

        In row mode the prediction is explained once more, in matrix mode, when this is first asked for. A
        copy, or a pickle, of a result in row mode has no model to do that with.

        Args:
            queries: name of the space or stream whose rows are wanted.
            keys: name of the space or stream whose columns are wanted. A space wins over a stream of the
                same name.

        Raises:
            UnknownNameError: no space or stream of that name.
            MethodError: the method keeps no matrix.
            VerificationError: the model has changed since, so that it would be another explanation's.
        """
        rows, columns = self._tokens(queries), self._tokens(keys)
        if self.relevancy is None and self.later is not None:
            object.__setattr__(self, "relevancy", self.later())
        if self.relevancy is None and self.mode == "rows":
            raise MethodError(
                "a copy of a result has no model to work out the relevancy matrix with",
                expected="the matrix worked out before the result was copied or pickled",
                found="a result of single rows of the matrix",
                hint='call result.matrix(...) before, or explain with mode="matrix"',
            )
        if self.relevancy is None:
            raise MethodError(
                f"the method {self.method!r} keeps no relevancy matrix",
                expected="a method that gives every row, such as 'relevancy'",
                found=f"{self.method!r}, which gives the rows of the readout only",
                hint="use result.relevance[...] for the readout, or explain with method='relevancy'",
            )
        device = self.relevancy.device
        return self.relevancy[:, rows.to(device)[:, None], columns.to(device)[None, :]]

    @property
    def shares(self) -> dict[str, Tensor]:
        """Token space -> [batch]: which part of the relevance lies in it; what is negative does not count.

        What a knock-out says to it: :meth:`knock_out` with the name of the space.
        """
        whole = self._rows().clamp_min(0).sum(-1)
        return {
            name: values.clamp_min(0).sum(-1) / torch.where(whole == 0, 1, whole)
            for name, values in self.relevance.items()
        }

    def knock_out(self, count: int | str = 3, draws: int = 5, seed: int = 0) -> KnockOut:
        """Hold the explanation against the model: what becomes of the score where no attention reads the most
        relevant tokens, and where it does not read as many others.

        The graph is run once for the tokens and once for each draw. The token that the score is read at stays
        (with ``aside``), and so do spaces without any relevance.

        Args:
            count: how many tokens of each sample are knocked out; or the name of a space or stream, all of
                it, to which there are no others.
            draws: how often others are drawn at random.
            seed: of the draws.

        Raises:
            MethodError: this is a copy of a result, or an attention has a form that cannot be masked.
            UnknownNameError: no space or stream of that name.

        Example:
            >>> import fxplain
            >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            >>> model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
            >>> result = fxplain.explain(model, torch.randn(1, 6, 8), target=(0, 3))
            >>> found = result.knock_out(2)
            >>> len(found.tokens[0]), found.without.shape, found.at_random.shape
            (2, torch.Size([1]), torch.Size([5, 1]))
        """
        if self.without is None:
            raise MethodError(
                "a copy of a result has no model to hold it against",
                expected="what explain gave, not a copy, a pickle or a file of it",
                found=f"a result by {self.method!r} without its graph",
                hint="explain again, and call knock_out on what that gives",
            )
        may = self._candidates()
        if isinstance(count, str):
            inside = torch.zeros_like(may)
            inside[:, self._tokens(count)] = True
            may, count, draws = may & inside, may.shape[1], 0
        chosen, others = chosen_tokens(self._rows(), may, count, draws, seed)
        with_none = self.score.detach()
        found = self.without(_mask(chosen, self._rows().shape))
        at_random = [self.without(_mask(own, self._rows().shape)) for own in others]
        drawn = torch.stack(at_random) if at_random else with_none.new_zeros(0, len(with_none))
        names = tuple(tuple(self._name(token) for token in own) for own in chosen)
        return KnockOut(names, with_none, found, drawn)

    def _rows(self) -> Tensor:
        """[batch, tokens]."""
        return torch.cat([self.relevance[space.name] for space in self.spaces], -1)

    def _candidates(self) -> Tensor:
        """[batch, tokens] bool: the tokens of spaces with relevance, but for those that are read."""
        rows = self._rows()
        found = torch.zeros(rows.shape, dtype=torch.bool)
        for space in self.spaces:
            found[:, space.start : space.start + space.size] = bool(self.relevance[space.name].any())
        for sample, pairs in enumerate(self.readout):
            found[sample, [token for token, _ in pairs]] &= not self.aside
        return found

    def _name(self, token: int) -> str:
        space = next(s for s in self.spaces if s.start <= token < s.start + s.size)
        return f"{space.name}[{token - space.start}]"

    def save(self, path: str | os.PathLike[str], display: Display | None = None) -> None:
        """Write the explanation to a file, whole or not at all; the suffix says how.

        Args:
            path: ``.html`` a report to read, ``.png`` the overlays on images, ``.json`` or ``.npz`` the
                numbers, with all that is needed to draw the picture again.
            display: images, token texts and names of targets to show; without it tokens are numbered.

        Raises:
            OutputError: another suffix, no such folder, nothing to draw, or the file cannot be written.
        """
        from fxplain.render.save import save

        save(self, path, display)

    def _tokens(self, name: str) -> Tensor:
        spaces = {space.name: space for space in self.spaces}
        streams = {stream.name: stream for stream in self.streams}
        if name in spaces:
            return torch.arange(spaces[name].start, spaces[name].start + spaces[name].size)
        if name in streams:
            return torch.tensor(streams[name].tokens, dtype=torch.int64)
        raise _unknown("token space or stream", name, (*spaces, *streams))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{space.name}[{space.size}]" for space in self.spaces)
        asked = dict.fromkeys(map(str, self.questions))
        more = f" and {len(asked) - 1} more" if len(asked) > 1 else ""
        question = f"question: {next(iter(asked))}{more}, " if asked else ""
        return (
            f"Result({self.method!r}, {question}output={self.output!r}, batch={self.batch}, tokens: {sizes}, "
            f"{len(self.attentions)} attentions, verified={self.verified:.1e})"
        )


def _mask(tokens: list[list[int]], shape: torch.Size) -> Tensor:
    """[batch, tokens] bool from the places that are true."""
    found = torch.zeros(shape, dtype=torch.bool)
    for sample, own in enumerate(tokens):
        found[sample, own] = True
    return found


def _unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    names = ", ".join(repr(other) for other in dict.fromkeys(known))
    return UnknownNameError(
        f"there is no {kind} named {name!r}", expected=f"one of {names}", found=repr(name)
    )
