"""Gradient methods at the tensors where tokens are born, by captum (an extra: ``fxplain[captum]``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fxplain.attribution.prediction import Prediction
from fxplain.attribution.scheduled import Explained
from fxplain.attribution.token_inputs import TokenInputs, token_inputs
from fxplain.errors import MethodError, NonFiniteError, first_line

STEPS = 50
"""Points on the path of integrated gradients."""
DRAWS = 25
"""Noisy copies for SmoothGrad."""
NOISE = 0.15
"""Standard deviation of SmoothGrad's noise, as a share of the range of each tensor's values."""
COMPLETE = 0.05
"""Part of the score's difference that integrated gradients may miss without a note."""

Score = Callable[..., Tensor]
Attribute = Callable[[Score, tuple[Tensor, ...]], Sequence[Tensor]]


def gradient_times_input(prediction: Prediction) -> Explained:
    """``Σ x ∂s/∂x`` over the elements of each token (Shrikumar et al., 2016)."""
    return _explained(token_inputs(prediction), _gradient_times_input)


def integrated_gradients(prediction: Prediction) -> Explained:
    """``Σ x ∫ ∂s(tx)/∂x dt``, t from 0 to 1, over the elements of each token (Sundararajan et al., 2017)."""
    inputs = token_inputs(prediction)
    try:
        with _away_from_the_input(), torch.no_grad():
            zeros = inputs.scores(*[torch.zeros_like(value) for value in inputs.values])
        with _away_from_the_input():
            explained = _explained(inputs, _integrated_gradients)
    except NonFiniteError as error:
        raise MethodError(
            "integrated gradients start from zero embeddings, and near those the score is not finite here",
            expected="a score that is finite all the way, without division by the length of what is zero",
            found=str(error).splitlines()[0],
            hint="use gradient_x_input or smoothgrad, which stay near the embeddings",
        ) from error
    wanted = prediction.resolved.scores.detach() - zeros
    missed = (explained.rows.sum(1).to(wanted.dtype) - wanted).abs() / wanted.abs().clamp_min(1e-12)
    worst = float(missed.max())
    missed_some = f"miss {worst:.0%} of the score's change from zero embeddings ({STEPS} steps)"
    notes = () if worst <= COMPLETE else (f"integrated gradients {missed_some}",)
    return Explained(explained.rows, notes=(*_elsewhere(prediction), *notes))


def smoothgrad(prediction: Prediction) -> Explained:
    """Gradient times input, averaged over noisy copies of the embeddings (Smilkov et al., 2017)."""
    with torch.random.fork_rng(), _away_from_the_input():
        torch.manual_seed(0)
        rows = _explained(token_inputs(prediction), _smoothgrad).rows
    return Explained(rows, notes=_elsewhere(prediction))


@contextmanager
def _away_from_the_input() -> Iterator[None]:
    """Says what it is when an operation fails at embeddings that are not the model's own.

    Decisions may depend on them: tokens that are chosen by an arg max, experts, sizes.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        raise MethodError(
            "the captured graph cannot be run at other embeddings than those of this input",
            expected="a graph without decisions that depend on the embeddings",
            found=first_line(error),
            hint="use gradient_x_input, which stays at the input",
        ) from error


def _elsewhere(prediction: Prediction) -> tuple[str, ...]:
    """What must be told where a score is asked for at other embeddings than the model's own."""
    if not prediction.labelled.captured.specialised:
        return ()
    return ("approximate: what the model decided on this input is held fixed at other embeddings",)


def _explained(inputs: TokenInputs, attribute: Attribute) -> Explained:
    captum()
    values = tuple(value.detach().requires_grad_() for value in inputs.values)
    with torch.enable_grad():
        return Explained(inputs.each(lambda score: attribute(score, values)))


def captum() -> Any:
    """captum's attributions.

    Raises:
        MethodError: it is not installed.
    """
    try:
        from captum import attr
    except ImportError as error:
        raise MethodError(
            "this method is computed by captum, which is not installed",
            expected="captum 0.9 or newer",
            found=str(error),
            hint="pip install 'fxplain[captum]'",
        ) from error
    return attr


def _gradient_times_input(score: Score, values: tuple[Tensor, ...]) -> Sequence[Tensor]:
    found: Sequence[Tensor] = captum().InputXGradient(score).attribute(values)
    return found


def _integrated_gradients(score: Score, values: tuple[Tensor, ...]) -> Sequence[Tensor]:
    # one step at a time: the graph was captured for tensors of this very size
    found: Sequence[Tensor] = (
        captum()
        .IntegratedGradients(score)
        .attribute(values, n_steps=STEPS, internal_batch_size=values[0].shape[0])
    )
    return found


def _smoothgrad(score: Score, values: tuple[Tensor, ...]) -> Sequence[Tensor]:
    method = captum().InputXGradient(score)
    stdevs = tuple(NOISE * float(value.max() - value.min()) for value in values)
    found: Sequence[Tensor] = (
        captum()
        .NoiseTunnel(method)
        .attribute(values, nt_type="smoothgrad", nt_samples=DRAWS, nt_samples_batch_size=1, stdevs=stdevs)
    )
    return found
