"""A model together with what turns texts, pictures and sounds into its inputs: asked in one call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack, overload

from fxplain.adapters.generic import own
from fxplain.adapters.loaded import Loaded, LoadOptions
from fxplain.adapters.registry import load
from fxplain.adapters.show import Spell
from fxplain.attribution.table import AUTO
from fxplain.comparison import Comparison
from fxplain.display import Display
from fxplain.errors import InputError
from fxplain.explainer.answer import Answer, Named, behind, generated, longer, place_of_answer
from fxplain.explainer.answer import named as by_name
from fxplain.explainer.explanation import Explanation
from fxplain.explainer.generated import Generated
from fxplain.explainer.handed import (
    Asking,
    Given,
    Prepared,
    apart,
    kind_of,
    on_axis,
    shown_by_space,
)
from fxplain.explainer.names import named_target
from fxplain.explainer.ranked import Ranked, unranked
from fxplain.explainer.rows import stacked
from fxplain.graph_page import GraphPage
from fxplain.progress import working
from fxplain.targets import likeliest
from fxplain.targets import log_probability as log_probability_of
from fxplain.traced import Traced, trace


class Explainer:
    """Explains predictions of one model for texts, pictures, sounds or tensors.

    The model is captured when it is first asked, and again where inputs have a new size.

    Args:
        model: any ``torch.nn.Module``.
        processor: a tokenizer, image processor, feature extractor or processor of transformers, or a
            tokenizer of ``tokenizers``; or a function of what is handed over, which gives inputs as the model
            is called with (or a pair of these and a :class:`fxplain.Display`). None: inputs are tensors.
        labels: names of the targets: index -> name, or a sequence.
        spell: token ids -> the text of each token, where the processor cannot tell.

    Raises:
        InputError: the processor is none of these.

    Example:
        >>> import fxplain, torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> explainer = fxplain.Explainer(model, lambda count: torch.ones(1, count, 8))
        >>> explainer(4, target=(0, 3)).relevance["src"].shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        labels: Mapping[int, str] | Sequence[str] = (),
        spell: Spell | None = None,
    ) -> None:
        self.loaded = model if isinstance(model, Loaded) else own(model, processor, labels, spell)
        self._traced: Traced | None = None

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Explainer:
        """Load a model with its processor as the command line does.

        Args:
            name: a folder that ``save_pretrained`` wrote, an id on the hub, ``torchvision:NAME``,
                ``timm:NAME``, ``path/to/file.py:FACTORY``, or a ``FILE.pt2``.
            options: those of :class:`fxplain.LoadOptions`: ``device``, ``allow_pickle``, ...

        Raises:
            LoadError, UnsafeFileError: the name gives no model, or loading it would run code.
        """
        return cls(load(os.fspath(name), LoadOptions(**options)))

    @property
    def model(self) -> Any:
        """The model."""
        return self.loaded.model

    @overload
    def __call__(
        self, inputs: Any = None, *, target: Any = None, top: None = None, **asking: Unpack[Asking]
    ) -> Explanation: ...

    @overload
    def __call__(
        self,
        inputs: Any = None,
        *,
        target: Any = None,
        top: int,
        threshold: float | None = None,
        **asking: Unpack[Asking],
    ) -> Ranked: ...

    def __call__(
        self,
        inputs: Any = None,
        *,
        target: Any = None,
        top: int | None = None,
        threshold: float | None = None,
        **asking: Unpack[Asking],
    ) -> Explanation | Ranked:
        """Explain one prediction, or with ``top=`` several.

        Args:
            inputs: a text or several, messages of a chat, picture or sound files, or tensors as the model is
                called with; for a function as the processor, whatever it takes.
            target: as for :meth:`fxplain.Traced.explain`; names of classes or words as well, also within
                :func:`fxplain.contrast` and its like. None: what is usual for the model's task.
            top: explain so many of the likeliest answers: classes, next words, the surest objects of a
                detector, the largest regions of a segmentation; see :func:`fxplain.targets.likeliest`.
            threshold: the least probability of those; for detectors 0.5 by default.
            asking: ``text_pair=``, ``images=``, ``audio=``, ``video=``, ``axis=``, ``decoder_text=``;
                ``method=`` (``auto`` where none is named: the papers' relevancy, or net relevancy where
                attention is causal), ``output=``, ``layers=``, ``mode=``, ``verify=``.

        Raises:
            InputError: the model cannot take what is given.
            TargetError: there is no such target; see :meth:`fxplain.Traced.explain` for other errors.
        """
        given, how = apart(asking, method=AUTO)
        prepared, display = self.prepare(inputs, **given)
        traced = self.trace(prepared)
        if top is None:
            with working(f"explaining by {how['method']}"):
                result = traced.explain(prepared, self.target(target), **how)
            return Explanation(result, shown_by_space(display, result.spaces, result.batch))
        wanted = likeliest(top, self.target(target), threshold)
        with working("explaining the likeliest answers"):
            results = traced.explain_targets(prepared, wanted, **how)
        result, samples = unranked(results, results[0].batch)
        return Ranked(result, shown_by_space(display, result.spaces, results[0].batch), samples)

    def compare(
        self, inputs: Any = None, *, methods: Iterable[str], target: Any = None, **asking: Unpack[Asking]
    ) -> tuple[Comparison, Display]:
        """Explain one prediction by several methods; and what to show beside all of them:
        ``comparison.save(path, display)``.

        Args:
            methods: names of :func:`fxplain.methods`.
            inputs, target, asking: as for a call of the explainer.
        """
        given, how = apart(asking)
        prepared, display = self.prepare(inputs, **given)
        traced = self.trace(prepared)
        with working("comparing methods"):
            found = traced.compare(prepared, methods, self.target(target), **how)
        first = next(iter(found.values()))
        return found, shown_by_space(display, first.spaces, first.batch)

    def page(self, inputs: Any = None, *, target: Any = None, **asking: Unpack[Asking]) -> GraphPage:
        """The attention graph to look at, with the heads' maps on these inputs' tokens and the way of the
        relevance of one prediction.

        Args:
            inputs, target: as for a call of the explainer.
            asking: the inputs as for a call of the explainer; ``method=``, ``output=``.

        Raises:
            MethodError: the method does not carry rows over attentions; others as for a call.
        """
        given, how = apart(asking, method=AUTO)
        prepared, display = self.prepare(inputs, **given)
        traced = self.trace(prepared)
        batch = max(map(len, (*display.tokens.values(), *display.images.values())), default=1)
        shown = shown_by_space(display, traced.spaces, batch)
        named, title = self.target(target), f"Attention graph of {self.loaded.name}"
        return traced.page(prepared, named, display=shown, title=title, **how)

    def prepare(self, inputs: Any = None, **given: Unpack[Given]) -> Prepared:
        """The model's own inputs, and what to show for them; may be handed over in place of what it was made
        of."""
        if isinstance(inputs, Prepared):
            return inputs
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        axis = chosen.pop("axis", None)
        found = self._prepared(inputs, chosen)
        if axis is None:
            return found
        return on_axis(Prepared(by_name(self.model, found.inputs), found.display), axis)

    def _prepared(self, inputs: Any, chosen: Mapping[str, Any]) -> Prepared:
        more = {"image" if name == "images" else name: value for name, value in chosen.items()}
        if inputs is None or (isinstance(inputs, str) and not inputs and more):
            return Prepared(*self.loaded.prepare(**more))
        kind = kind_of(inputs, self.loaded)
        if kind == "tensors":
            if more:
                raise InputError(
                    "tensors are the whole input of a model",
                    expected="tensors alone, or texts, pictures and sounds",
                    found=f"tensors beside {', '.join(chosen)}=",
                )
            return Prepared(inputs, self.loaded.display(inputs))
        return Prepared(*self.loaded.prepare(**{kind: inputs}, **more))

    def trace(self, inputs: Any) -> Traced:
        """The traced model; captured on these inputs if it was not before."""
        if self._traced is None:
            with working("capturing the model and finding its attentions"):
                self._traced = trace(self.model, inputs)
        return self._traced

    def generate(
        self,
        inputs: Any = None,
        *,
        max_new_tokens: int = 40,
        settings: Mapping[str, Any] | None = None,
        into: str | None = None,
        log_probability: bool = False,
        **asking: Unpack[Asking],
    ) -> Generated:
        """Let the model answer, and explain every token of its answer.

        Args:
            inputs, asking: as for a call of the explainer; one sample.
            max_new_tokens: how many tokens the answer has at most.
            settings: more arguments for the model's own ``generate`` (transformers); by default it takes the
                likeliest token every time. A model without one is run once for each token.
            into, log_probability: as for :meth:`explain_generated`.

        Raises:
            InputError: the model gives no answer, or there are several samples.
        """
        given, how = apart(asking, method=AUTO)
        prepared, display = self.prepare(inputs, **given)
        named = by_name(self.model, prepared)
        place = place_of_answer(self.model, named, self.loaded.show.ids, into)
        with working("the model answers"):
            ids = generated(self.model, named, place, max_new_tokens, settings or {})
        return self._answered(named, display, place, ids, log_probability, how)

    def explain_generated(
        self,
        inputs: Any,
        output_ids: Any,
        *,
        into: str | None = None,
        log_probability: bool = False,
        **asking: Unpack[Asking],
    ) -> Generated:
        """Explain every token of an answer that exists already: one forward pass over prompt and answer, and
        backward passes of several tokens at once.

        Args:
            inputs, asking: as for a call of the explainer; one sample.
            output_ids: the answer: its ids, with or without those of the prompt before them, as ``generate``
                gives them; or its text, which begins with a space where it begins a word.
            into: the input that the answer goes on, where that is not the text, or what the decoder has said.
            log_probability: explain the logarithm of each token's probability in place of its score.

        Raises:
            InputError: it is not known which input the answer goes on, or there are several samples.
        """
        given, how = apart(asking, method=AUTO)
        prepared, display = self.prepare(inputs, **given)
        named = by_name(self.model, prepared)
        place = place_of_answer(self.model, named, self.loaded.show.ids, into)
        ids = self._ids_of(output_ids) if isinstance(output_ids, str) else output_ids
        return self._answered(named, display, place, behind(ids, named[place]), log_probability, how)

    def _ids_of(self, text: str) -> Any:
        tokenizer = self.loaded.processors.tokenizer if self.loaded.processors is not None else None
        if tokenizer is None:
            raise InputError(
                "there is no tokenizer that could turn the answer into ids", expected="ids", found="a text"
            )
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def _answered(
        self,
        inputs: Named,
        display: Display,
        place: str,
        ids: tuple[int, ...],
        log: bool,
        how: dict[str, Any],
    ) -> Generated:
        """One forward pass over all but the answer's last token, and a target for each of its tokens."""
        if not ids:
            raise InputError("there is no answer", expected="at least one token", found="none")
        whole = longer(inputs, place, ids[:-1])
        targets: list[Any] = [(number - len(ids), token) for number, token in enumerate(ids)]
        asked = [log_probability_of(target) for target in targets] if log else targets
        results = self.trace(whole).explain_targets(whole, asked, **how)
        texts = self._spelled([*whole[place][0].tolist(), ids[-1]])
        first = inputs[place].shape[1]
        prompt = next(iter(display.tokens.get(place, ())), texts)
        shown = replace(display, tokens={**display.tokens, place: [[*prompt[:first], *texts[first:-1]]]})
        result = stacked(results)
        shown = shown_by_space(shown, result.spaces, 1)
        space = next((s.name for s in result.spaces if s.origin == "input" and s.source == place), place)
        return Generated(result, shown, Answer(space, first, ids, tuple(texts[first:])))

    def _spelled(self, ids: Sequence[int]) -> list[str]:
        spell, names = self.loaded.show.spell, self.loaded.labels
        return list(spell(ids)) if spell is not None else [names.get(one, f"<{one}>") for one in ids]

    def target(self, target: Any) -> Any:
        """A target with its names looked up.

        Raises:
            TargetError: there is no such name; the message has the near ones.
        """
        return named_target(target, self.loaded.labels)

    def __repr__(self) -> str:
        found = "" if self._traced is None else f", {len(self._traced.attentions)} attentions"
        parts = self.loaded.processors
        takes = (
            []
            if parts is None
            else [n for n in ("tokenizer", "image", "audio") if getattr(parts, n) is not None]
        )
        what = f" with {', '.join(takes)}" if takes else ""
        return f"Explainer({self.loaded.name}{what}{found})"
