"""From a question on the page to what is shown: the likeliest answers, and an explanation as a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxplain.errors import FxplainError, MethodError, TargetError
from fxplain.explainer.explainer import Explainer
from fxplain.render.marks import named
from fxplain.render.report import report
from fxplain.serve.handed import Asked

TOP = 5
"""Answers to choose from."""


@dataclass(frozen=True)
class Shown:
    """What the page gets."""

    html: str
    """A page of its own."""
    question: str
    choices: tuple[dict[str, Any], ...] = ()
    """The likeliest answers: what to send as the target, a name, a probability."""


class Answering:
    """Answers questions about one model, one after the other."""

    def __init__(self, explainer: Explainer) -> None:
        self.explainer = explainer

    def takes(self) -> dict[str, bool]:
        """What can be typed and dropped."""
        loaded = self.explainer.loaded
        parts = loaded.processors
        own = getattr(self.explainer.model, "can_generate", lambda: False)
        if parts is None:
            known = loaded.encode is not None
            return {"text": known, "picture": known, "sound": False, "chat": False, "answer": bool(own())}
        template = getattr(parts.tokenizer, "chat_template", None) or getattr(
            parts.joint, "chat_template", None
        )
        return {
            "text": parts.tokenizer is not None,
            "picture": parts.image is not None,
            "sound": parts.audio is not None,
            "chat": bool(template),
            "answer": bool(own()),
        }

    def answer(self, asked: Asked, chat: bool = False) -> Shown:
        """Explain what was asked.

        Raises:
            FxplainError: it cannot be explained.
        """
        inputs: Any = asked.text or None
        if chat and asked.text:
            inputs = [{"role": "user", "content": asked.text}]
        given: dict[str, Any] = {**asked.inputs, "method": asked.method}
        if asked.tokens and asked.target is None:
            from fxplain.render.answer_page import answer_page

            said = self.explainer.generate(inputs, max_new_tokens=asked.tokens, **given)
            return Shown(answer_page(said), f"the answer {said.text!r}")
        choices = self._choices(inputs, given) if asked.target is None else ()
        target = asked.target if asked.target is not None or not choices else _target(choices[0]["target"])
        found = self.explainer(inputs, target=target, **given)
        return Shown(report(found.result, found.display), found.question, choices)

    def _choices(self, inputs: Any, given: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """The likeliest answers of the first sample; none where the task of the model has no such."""
        try:
            ranked = self.explainer(inputs, top=TOP, **given).of(0)
        except (TargetError, MethodError):
            return ()
        found = []
        for one in ranked:
            question = one.result.questions[0].named(one.display.labels)
            target = ",".join(map(str, one.result.target[0])) if not question.spot else ""
            found.append({"target": target, "name": named(question), "probability": question.probability})
        return tuple(one for one in found if one["target"])


def _target(text: str) -> Any:
    indices = tuple(int(part) for part in text.split(","))
    return indices if len(indices) > 1 else indices[0]


def told(error: Exception) -> str:
    """An error in words for the page; what is no error of fxplain's is told without its insides."""
    if isinstance(error, FxplainError):
        return str(error)
    return f"{type(error).__name__}: the terminal has more"
