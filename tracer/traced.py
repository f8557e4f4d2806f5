"""A model once traced: what was found in it, and explanations of its predictions."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxplain.attention.census import census
from fxplain.attention.graph import attention_graph
from fxplain.attention.labelled import Labelled, capture_and_label, label
from fxplain.attention.layers import Layers
from fxplain.attention.notes import notes_of
from fxplain.attention.records import Attention, CensusEntry, Mixing, Stream, TokenSpace
from fxplain.attribution.auto import settled, settled_one
from fxplain.attribution.prediction import Mode
from fxplain.attribution.table import Method, method_named, methods_named
from fxplain.capture.captured import Captured
from fxplain.capture.guard import drawing_from, forks_told, one_at_a_time, untouched
from fxplain.capture.inputs import normalise
from fxplain.comparison import Comparison
from fxplain.display import Display
from fxplain.errors import FxplainError
from fxplain.explanation import explain_labelled, knocked_out, with_notes
from fxplain.graph_page import Asked, GraphPage, graph_and_census, looked
from fxplain.laws.table import Case, Judgement, judgements, notes_of_laws
from fxplain.layouts import Layouts
from fxplain.maps.samplings import point_weights
from fxplain.maps.weights import per_head
from fxplain.result import Result
from fxplain.run.ranked import Likeliest
from fxplain.run.replay import replay
from fxplain.saved.model import SavedModel
from fxplain.several_targets import MEMORY, explain_each
from fxplain.walk import Walk, predicted, walked
from fxplain.why import Why, why

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, repr=False)
class Traced:
    """A model that has been captured, and whose attentions have been found and typed. Made by
    :func:`trace`."""

    model: Any
    _first: Labelled = field(repr=False)
    _layouts: Layouts = field(repr=False)

    @property
    def captured(self) -> Captured:
        """The graph that stands for the model."""
        return self._first.captured

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """All attentions, in order of execution."""
        return self._first.classified.attentions

    @property
    def mixings(self) -> tuple[Mixing, ...]:
        """All other steps that move information between tokens."""
        return self._first.classified.mixings

    @property
    def steps(self) -> tuple[Attention | Mixing, ...]:
        """Attentions and mixings together, in order of execution."""
        return self._first.classified.steps

    @property
    def spaces(self) -> tuple[TokenSpace, ...]:
        """Where tokens are born."""
        return self._first.classified.spaces

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What attentions range over."""
        return self._first.classified.streams

    @property
    def batch_axis(self) -> int | None:
        """Where most of the inputs have their samples; None if they are all one sample."""
        findings = self._first.findings
        return None if findings.listed else findings.batch_axis

    @property
    def batch_axes(self) -> dict[str, int | None]:
        """Where each input has its samples; None if it is of one sample, or of all."""
        captured, guess = self._first.captured, self._first.findings.guess
        paths = [tensor.path for tensor in captured.layout.tensors]
        return {path: guess.axis_of(path, t) for path, t in zip(paths, captured.example, strict=True)}

    @property
    def _head(self) -> str:
        found = self.attentions
        kinds = dict.fromkeys(attention.kind for attention in found)
        counts = [f"{sum(a.kind == kind for a in found)} {kind.replace('_', '-')}" for kind in kinds]
        some = f" ({', '.join(counts)})" if len(counts) > 1 else ""
        what = f"{len(found)} {' '.join(counts).partition(' ')[2] + ' ' if len(counts) == 1 else ''}attention"
        return f"{type(self.model).__name__}: {what}{'' if len(found) == 1 else 's'}{some}"

    def __repr__(self) -> str:
        mixed = f", {len(self.mixings)} other steps between tokens" if self.mixings else ""
        streams = ", ".join(f"{stream.name} [{stream.size}]" for stream in self.streams[:6])
        return f"Traced({self._head}{mixed}; streams {streams}{', ...' if len(self.streams) > 6 else ''})"

    def _repr_html_(self) -> str:
        from fxplain.render.notebook import steps_html

        return steps_html(self._head, self.steps, self.notes)

    def maps(self, inputs: Any) -> tuple[Tensor, ...]:
        """The attention maps on these inputs, also where the model's attention is fused.

        A model that draws random numbers draws those of the trace.

        Returns:
            One tensor [batch, head, query, key] for each of :attr:`attentions`; queries and keys in the
            order of the attention's streams.

        Example:
            >>> import torch
            >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
            >>> x = torch.randn(1, 5, 8)
            >>> trace(model, x).maps(x)[0].shape
            torch.Size([1, 2, 5, 5])
        """
        args, kwargs = normalise(inputs)
        with untouched(None), drawing_from(self._first.drawn_from):
            labelled, bound, _ = self._layouts.labelled_for(args, kwargs, False)
            run = replay(labelled.captured, bound, labelled.classified.sites, gradients=False)
            sites = [site for site in labelled.classified.sites if site.role == "attention"]
            return tuple(
                per_head(labelled.plans[site.index], run, attention)
                for site, attention in zip(sites, labelled.classified.attentions, strict=True)
            )

    def points(self, inputs: Any) -> tuple[Tensor, ...]:
        """The weights of deformable attention: one for each point that a query samples.

        Returns:
            One tensor [batch, head, query, point] for each of :attr:`mixings` that samples at points (its
            ``kind`` is not None); points of several grids side by side.
        """
        args, kwargs = normalise(inputs)
        with untouched(None), drawing_from(self._first.drawn_from):
            labelled, bound, _ = self._layouts.labelled_for(args, kwargs, False)
            sites = [site for site in labelled.classified.sites if site.attends and site.role == "mixing"]
            run = replay(labelled.captured, bound, sites, gradients=False)
            return tuple(point_weights(site, run, labelled.findings.batch) for site in sites)

    @cached_property
    def census(self) -> tuple[CensusEntry, ...]:
        """Every softmax-like operation with its role and the reason for it."""
        return census(self._first.findings, self._first.classified.sites)

    def why(self, node: str) -> Why:
        """Why a node of the graph is taken for what it is: for whoever adds an operation, or wonders why an
        attention was not found. What recognition rules made of it is not in a file of :meth:`save`.

        Args:
            node: its name, as in the census, in errors and in :attr:`captured`.

        Raises:
            InputError: the graph has no such node.

        Example:
            >>> import torch
            >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
            >>> traced = trace(model, torch.randn(1, 5, 8))
            >>> traced.why(traced.attentions[0].node).role
            'self attention 0: src [5] from src [5]'
        """
        return why(self._first, node)

    def laws(self, inputs: Any, result: Result | None = None) -> tuple[Judgement, ...]:
        """How the laws hold on these inputs: whether what is read into the graph is what the graph does.

        Args:
            inputs: as for :meth:`explain`.
            result: an explanation of these inputs, for laws that are about one.

        Returns:
            One judgement for each law: ``law.name``, and where it is ``broken``, by node, module path and
            source line; ``set_aside`` is what a note of every explanation says already, or is too large.

        Example:
            >>> import torch
            >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
            >>> x = torch.randn(1, 5, 8)
            >>> [(found.law.name, found.broken) for found in trace(model, x).laws(x)][:1]
            [('influence', ())]
        """
        args, kwargs = normalise(inputs)
        with untouched(None), drawing_from(self._first.drawn_from):
            labelled, bound, _ = self._layouts.labelled_for(args, kwargs, False)
            case = Case(labelled, bound)
            if result is not None:
                own = callable(result.target)
                target, output = (result.target, None) if own else (list(result.target), result.output)
                rows = torch.cat(list(result.relevance.values()), -1)
                case = Case(labelled, bound, target, output, rows, result.notes)
            return tuple(judgements(case))

    @property
    def lost(self) -> tuple[str, ...]:
        """Names of the nodes at which token labels were lost; the census says where they are."""
        return tuple(self._first.findings.ledger.remarks.losses)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of any explanation must know: what is approximate, and what is not followed."""
        return notes_of(self._first)

    @cached_property
    def graph(self) -> nx.MultiDiGraph[str]:
        """Streams and attentions as a graph, see :func:`fxplain.attention.graph.attention_graph`."""
        return attention_graph(self._first.classified, self.captured.outputs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the captured graph with its weights, and all that was found in it, to one file.

        :func:`fxplain.load` reads it without capture and labelling, and without the model's code. Kept is
        the layout of inputs that was traced, and the input itself, to verify the graph when it is loaded.
        The file is written whole or not at all, and read back before it takes an older one's place.

        Raises:
            OutputError: the graph was recorded, so that it holds for one input only; or something in it
                has no form as a file; or the disk refuses.
            VerificationError: the graph no longer computes what the model computes.
        """
        from fxplain.saved.files import save

        save(self._first, path)

    def explain(
        self,
        inputs: Any,
        target: Any = None,
        method: str = "relevancy",
        output: str | None = None,
        verify: bool = False,
        layers: Layers | None = None,
        mode: Mode = "auto",
        check: bool = False,
    ) -> Result:
        """Explain one prediction for each sample of the inputs.

        Args:
            inputs: a tensor, tuple, dict or BatchEncoding, just as the model is called.
            target: what to explain. None: the arg max of every sample. An int: the place on the last axis.
                A tuple: an index into one sample's output: (query, class), (position, token). A tensor
                or list: one of these per sample. A callable: from the model's output to one score per sample.
            method: one of :func:`fxplain.methods`; those with gradients also as ``NAME+libra``. ``auto``:
                ``relevancy``, the papers' method, unless a self-attention is causal (language models); then
                ``net_relevancy``, and a note says so. ``result.method`` is the one that was taken.
            output: name of the output to explain; ``logits`` by default, or the first
                floating one behind an attention.
            verify: compare graph and model on these inputs, and rebuilt maps with what their attentions
                give, also where this layout was compared before.
            layers: the layers of attentions that take part: an int, a slice or several ints, counted in
                every tower of the model by itself; negative ones from its last. None: all.
            mode: how relevancy and its kin are worked out. ``rows``: only the rows that are read, carried
                back over the attentions, in time and memory of a pass. ``matrix``: all of R. ``auto``: rows
                where the model allows it (no attention both ways between streams). See ``result.mode``.
                ``checkpoint``: rows with activation checkpointing, for long inputs: the graph is run again
                in slices where backward needs it, which takes one more forward pass and much less memory.
            check: hold the laws against this explanation, see :meth:`laws`: a few forward passes. Each place
                at which one is broken is a note of the result; and so is what becomes of the score without
                the most relevant token, see :meth:`fxplain.Result.knock_out`.

        Raises:
            InputError, TargetError, MethodError, NoAttentionError, UnknownOpError, NonFiniteError,
            VerificationError: see :mod:`fxplain.errors`.
        """
        how = {"output": output, "layers": layers, "mode": mode}
        answers = self._answers(inputs, verify, [method_named(method)], target=target, **how)
        (answer,) = answers.values()
        if isinstance(answer, FxplainError):
            raise answer
        if not check:
            return answer
        return with_notes(answer, (*notes_of_laws(self.laws(inputs, answer)), *knocked_out(answer)))

    def walk(
        self, inputs: Any, target: Any = None, method: str = "relevancy", output: str | None = None
    ) -> Walk:
        """Explain one prediction, and say which attentions its relevance came through.

        Args:
            inputs, target, output: as for :meth:`explain`.
            method: one that carries rows over the attentions, such as ``relevancy`` or ``rollout``; ``auto``
                as for :meth:`explain`.

        Raises:
            MethodError: the method goes another way, or the input is too long; other errors as for
                :meth:`explain`.
        """
        args, kwargs = normalise(inputs)
        chosen = method_named(method)
        with untouched(None):
            labelled, bound, verified = self._layouts.labelled_for(args, kwargs, False)
            chosen, why = settled_one(chosen, labelled, bound)
            walk = walked(predicted(labelled, bound, target, chosen, output), chosen, verified)
            return replace(walk, result=with_notes(walk.result, why))

    def page(
        self,
        inputs: Any = None,
        target: Any = None,
        method: str = "relevancy",
        output: str | None = None,
        display: Display | None = None,
        title: str = "",
        sample: int = 0,
    ) -> GraphPage:
        """The attention graph to look at: folded, zoomed and searched; with inputs also the heads' maps on
        their tokens, and the way of the relevance. See :class:`fxplain.graph_page.GraphPage`.

        Args:
            inputs, target, method, output: as for :meth:`walk`. Without inputs, the graph alone. Where no
                target is given and none can be explained, the page has the maps, and says so.
            display: the texts and pictures of the tokens.
            sample: which one of a batch is shown.

        Raises:
            as :meth:`walk`, where a target is given.

        Example:
            >>> import torch
            >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
            >>> x = torch.randn(1, 5, 8)
            >>> sorted(trace(model, x).page(x, target=(0, 3)).look.maps)
            ['attention:0']
        """
        shown = display or Display()
        title = title or shown.title or f"Attention graph of {type(self.model).__name__}"
        if inputs is None:
            return GraphPage(self.graph, title, self.census)
        args, kwargs = normalise(inputs)
        chosen = method_named(method)
        with untouched(None), drawing_from(self._first.drawn_from):
            labelled, bound, verified = self._layouts.labelled_for(args, kwargs, False)
            asked = Asked(target, settled_one(chosen, labelled, bound)[0], output, shown, sample)
            return GraphPage(*graph_and_census(labelled, title), looked(labelled, bound, verified, asked))

    def explain_targets(
        self,
        inputs: Any,
        targets: Sequence[Any] | Callable[[Any], Sequence[Any]] | Likeliest,
        method: str = "relevancy",
        output: str | None = None,
        verify: bool = False,
        layers: Layers | None = None,
        mode: Mode = "auto",
        memory: int = MEMORY,
    ) -> tuple[Result, ...]:
        """Explain many targets of the same inputs: one forward pass, and backward passes of several at once.

        Args:
            targets: each of them as for :meth:`explain`; or a function from the model's output to such a
                sequence, see :mod:`fxplain.targets` for ready ones; or :func:`fxplain.targets.likeliest`.
            memory: how many bytes the gradients of targets that are worked out together may take; at least
                one target is. The forward pass comes on top.
            inputs, method, output, verify, layers, mode: as for :meth:`explain`.

        Returns:
            One result for each target, equal to rounding to what :meth:`explain` gives for it alone.

        Raises:
            InputError, TargetError, MethodError, NoAttentionError, UnknownOpError, NonFiniteError,
            VerificationError: at the first target that cannot be explained; see :mod:`fxplain.errors`.

        Example:
            >>> import torch
            >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
            >>> x = torch.randn(1, 5, 8)
            >>> [result.target for result in trace(model, x).explain_targets(x, [(0, 3), (4, 1)])]
            [((0, 3),), ((4, 1),)]
        """
        args, kwargs = normalise(inputs)
        chosen = method_named(method)
        with untouched(None), forks_told():
            labelled, bound, verified = self._layouts.labelled_for(args, kwargs, verify)
            again = verify or labelled.captured.specialised
            chosen, why = settled_one(chosen, labelled, bound)
            found = explain_each(
                labelled, bound, targets, chosen, output, verified, layers, again, mode, memory
            )
            return tuple(with_notes(result, why) for result in found)

    def compare(
        self,
        inputs: Any,
        methods: Iterable[str],
        target: Any = None,
        output: str | None = None,
        verify: bool = False,
        layers: Layers | None = None,
        mode: Mode = "auto",
    ) -> Comparison:
        """Explain one prediction by several methods; the graph is run once for all of them.

        A method that is not defined for this model, or cannot be computed on it, is left out, with its reason
        in ``refused``.

        Raises:
            MethodError: a name that is none. Where no method has a result, the error of the first.
        """
        chosen = methods_named(methods)
        how = {"output": output, "layers": layers, "mode": mode}
        return Comparison.of(self._answers(inputs, verify, chosen, target=target, **how))

    def _answers(
        self, inputs: Any, verify: bool, methods: Sequence[Method], **asked: Any
    ) -> dict[str, Result | FxplainError]:
        """The answers of several methods to what is ``asked``, as :func:`explain_labelled` takes it."""
        args, kwargs = normalise(inputs)
        with untouched(None):
            labelled, bound, verified = self._layouts.labelled_for(args, kwargs, verify)
            again = verify or labelled.captured.specialised
            chosen, why = settled(methods, labelled, bound)
            found = explain_labelled(
                labelled, bound, methods=chosen, verified=verified, verify=again, **asked
            )
            return found | {
                name: with_notes(answer, (why[name],))
                for name, answer in found.items()
                if name in why and isinstance(answer, Result)
            }


def trace(model: Any, inputs: Any) -> Traced:
    """Capture a model and find its attentions, once.

    Args:
        model: any ``torch.nn.Module`` (or a program saved by ``torch.export.save``, once loaded; what
            :func:`load` has read is traced already).
        inputs: a tensor, tuple, dict or BatchEncoding, just as the model is called.

    Raises:
        InputError, CaptureError, VerificationError, NonFiniteError, DeviceError: see :mod:`fxplain.errors`.

    Example:
        >>> import torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> traced = trace(model, torch.randn(1, 5, 8))
        >>> [(a.kind, a.queries.name, a.queries.size, a.heads) for a in traced.attentions]
        [('self', 'src', 5, 2)]
    """
    with one_at_a_time():
        return _trace(model, inputs)


def _trace(model: Any, inputs: Any) -> Traced:
    args, kwargs = normalise(inputs)
    if isinstance(model, SavedModel) and model.labelled is not None:
        model.labelled.captured.bind(args, kwargs)  # raises where the inputs are of another layout
        return traced_from(model.labelled)
    with untouched(None):
        if isinstance(model, Captured):
            return traced_from(label(model, model.bind(args, kwargs)))
        return traced_from(capture_and_label(model, args, kwargs))


def traced_from(labelled: Labelled) -> Traced:
    """The traced model of a graph that has been labelled, for its layout of inputs."""
    return Traced(labelled.captured.model, labelled, Layouts.of(labelled))


def explain(
    model: Any,
    inputs: Any,
    target: Any = None,
    method: str = "relevancy",
    output: str | None = None,
    layers: Layers | None = None,
    check: bool = False,
) -> Result:
    """Explain one prediction of any PyTorch transformer: :func:`trace`, then :meth:`Traced.explain`.

    Example:
        >>> import torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> result = explain(model, torch.randn(1, 5, 8), target=(0, 3))
        >>> result.relevance["src"].shape
        torch.Size([1, 5])
    """
    method_named(method)  # a wrong name is told before the model is captured
    return trace(model, inputs).explain(inputs, target, method, output, layers=layers, check=check)


def compare(
    model: Any,
    inputs: Any,
    methods: Iterable[str],
    target: Any = None,
    output: str | None = None,
    layers: Layers | None = None,
) -> Comparison:
    """Explain one prediction by several methods, from one capture: :func:`trace`, :meth:`Traced.compare`.

    Example:
        >>> import torch
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> found = compare(model, torch.randn(1, 5, 8), ["relevancy", "rollout"], target=(0, 3))
        >>> list(found), found["rollout"].relevance["src"].shape
        (['relevancy', 'rollout'], torch.Size([1, 5]))
    """
    names = [method.name for method in methods_named(methods)]
    return trace(model, inputs).compare(inputs, names, target, output, layers=layers)


def load(path: str | os.PathLike[str], operations: Collection[str] = ()) -> Traced:
    """A traced model that :meth:`fxplain.Traced.save` wrote, with its weights; neither captured nor labelled
    again.

    It explains inputs of the layout it was traced with. Its graph is run on the input of the trace, and must
    give what it gave when it was saved. Nothing is unpickled: a file that would have torch do so, or that is
    anything but tensors, plain names and operations of torch, is refused.

    Args:
        path: the file.
        operations: libraries with operations of their own (``torch.ops.NAME``) that may run. They must have
            been imported, and you must trust them with what the file hands them.

    Raises:
        LoadError: no such file, not written by ``save``, truncated, or by another version.
        UnsafeFileError: reading it could run code.
        VerificationError: the graph gives something else than it gave when it was saved.

    Example:
        >>> import tempfile, torch, fxplain
        >>> model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x = torch.randn(1, 5, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fxplain.trace(model, x).save(f"{folder}/layer.pt2")
        ...     traced = load(f"{folder}/layer.pt2")
        >>> traced.explain(x, target=(0, 3)).relevance["src"].shape
        torch.Size([1, 5])
    """
    from fxplain.saved.files import read

    return traced_from(read(path, operations))
