"""Anything that fxplain has saved, read by the suffix of its file."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from fxplain import traced
from fxplain.explainer.answer import Answer
from fxplain.explainer.explanation import Explanation
from fxplain.explainer.generated import Generated
from fxplain.explainer.ranked import Ranked
from fxplain.explainer.stored import READERS, read
from fxplain.files import path_of
from fxplain.render.words import TokenText


def load(path: str | os.PathLike[str], operations: Collection[str] = ()) -> Any:
    """Read what fxplain has saved: an explanation, an explained answer, or a traced model.

    Args:
        path: ``.json``, ``.npz`` and ``.safetensors`` hold a :class:`fxplain.Explanation`, a
            :class:`fxplain.Generated` or a :class:`fxplain.Ranked`, as plain data. Any other file is taken
            for a traced model, see :func:`fxplain.traced.load`.
        operations: for a traced model.

    Raises:
        LoadError: no such file, not written by fxplain, damaged, or of another version.
        UnsafeFileError, VerificationError: of a traced model.

    Example:
        >>> import tempfile, torch, fxplain
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> result = fxplain.explain(model, torch.randn(1, 5, 8), target=(0, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result.save(f"{folder}/layer.npz")
        ...     again = load(f"{folder}/layer.npz")
        >>> torch.equal(again.relevance["src"], result.relevance["src"])
        True
    """
    place = path_of(path)
    if place.suffix.lower() not in READERS:
        return traced.load(path, operations)
    result, display, facts = read(place)
    if "ranked" in facts:
        return Ranked(result, display, tuple(facts["ranked"]["samples"]))
    if "answer" not in facts:
        return Explanation(result, display)
    answer = facts["answer"]
    texts = map(TokenText, answer["texts"], answer["special"])
    return Generated(
        result, display, Answer(answer["space"], answer["first"], tuple(answer["ids"]), tuple(texts))
    )
