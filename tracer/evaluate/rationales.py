"""Words that people (or the task) marked, found again: token F1 and average precision.

DeYoung et al., *ERASER: A Benchmark to Evaluate Rationalized NLP Models*, ACL 2020; as in Chefer, Gur, Wolf,
CVPR 2021, Figure 4: the k most relevant tokens are the rationale, for k from 10 to 80.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxplain.evaluate.curves import ranked

ERASER_K = tuple(range(10, 81, 10))
"""The paper's numbers of tokens, for reviews of hundreds of words."""


def token_f1(relevance: Tensor, marked: Tensor, k: Sequence[int], counted: Tensor | None = None) -> Tensor:
    """F1 of the k most relevant tokens against the marked ones.

    Args:
        relevance: [batch, tokens].
        marked: [batch, tokens] bool; a sample without any has F1 of 0.
        k: numbers of tokens that are taken; all there are, where there are fewer.
        counted: [batch, tokens] bool: tokens that may be taken (no padding, no [CLS]); None: all.

    Returns:
        [batch, len(k)] float64.

    Example:
        >>> token_f1(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[True, False, False]]), (1, 3))
        tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    may = torch.ones_like(marked) if counted is None else counted
    marked = marked & may
    order = ranked(relevance, may, most_first=True)
    hits = (marked & may).gather(1, order).double().cumsum(1)
    taken = torch.arange(1, relevance.shape[1] + 1)[None].minimum(may.sum(1, keepdim=True))
    columns = []
    for number in k:
        place = min(number, relevance.shape[1]) - 1
        columns.append(2 * hits[:, place] / (taken[:, place] + marked.sum(1)).clamp_min(1))
    return torch.stack(columns, 1)


def alignment_share(relevance: Tensor, sources: Tensor) -> Tensor:
    """Whether the most relevant source of each target is the true one.

    Args:
        relevance: [targets, sources], one row for each explained target.
        sources: [targets] int64: the true source; -1 where there is none, which does not count.

    Returns:
        [targets that count] bool. A row that is constant or not finite points nowhere.

    Example:
        >>> alignment_share(torch.tensor([[0.1, 0.9], [0.5, 0.5]]), torch.tensor([1, 0]))
        tensor([ True, False])
    """
    counts = sources >= 0
    rows, true = relevance[counts].detach(), sources[counts]
    points = rows.isfinite().all(1) & (rows.amax(1) > rows.amin(1))
    return points & (rows.nan_to_num().argmax(1) == true)
