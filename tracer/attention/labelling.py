"""The labelling run: execute the graph once with a second value beside each tensor, its token labels."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, fx

from fxplain.attention.samples_shown import names_samples, shown
from fxplain.capture.captured import Captured
from fxplain.capture.guard import same_random_numbers
from fxplain.capture.placeholder import Placeholder
from fxplain.labels.batch_axis import Guess, batch_guesses
from fxplain.labels.call import op_name
from fxplain.labels.elements import Root
from fxplain.labels.findings import Findings
from fxplain.labels.labels import DORMANT, STRONG, WEAK, Slot, compact, encode
from fxplain.labels.notebook import Ledger
from fxplain.labels.value import NOTHING, SETTLED, Value
from fxplain.ops.catalogue import TABLE, Call
from fxplain.ops.elementwise import pointwise
from fxplain.ops.experiment import by_experiment
from fxplain.recognise.copies import apart, where_copied
from fxplain.recognise.copies_in_windows import LaidOut, laid_apart, nowhere_apart, where_laid_out
from fxplain.recognise.divided_late import follow

WEIGHT_ARGUMENTS = frozenset(
    {"weight", "bias", "running_mean", "running_var", "mat2", "scale", "other_weight"}
)
PASSING = frozenset(
    {"aten::t", "aten::transpose", "aten::permute", "aten::to", "aten::_to_copy", "aten::detach"}
)


MOST_COPIES = 4
"""How often copies of copies are looked for."""
STEM = "stem", "no transfer function, on raw data: tokens are counted from its result"


def find(captured: Captured, bound: Mapping[str, Tensor]) -> tuple[Findings, tuple[Tensor, ...]]:
    """Label the graph on these tensors, with the first batch axis that nothing refutes.

    Args:
        captured: the graph and its placeholders.
        bound: a tensor for each placeholder node, as :meth:`Captured.bind` gives them.

    Returns:
        What is seen, and the graph's outputs.
    """
    joined: dict[int, fx.Node] = {}
    found: list[Findings] = []
    outputs: tuple[Tensor, ...] = ()
    for guess in batch_guesses(captured, bound):
        if guess.axis is None and found:
            break
        labelling = Labelling(captured, bound, guess)
        findings = labelling.run()
        if findings is None and guess.axis is not None and labelling.refuted is not None:
            joined.setdefault(guess.axis, labelling.refuted)
        if findings is not None and (guess.axis is None or names_samples(findings)):
            found, outputs = [*found, findings], labelling.outputs
            if guess.axis is None or shown(captured, findings):
                break
    best = next((each for each in found if shown(captured, each)), found[0])
    sure = len(found) == 1 or (best.batch > 1 and shown(captured, best))
    best = _with_copies(best, captured, bound)
    return replace(best, joined=tuple(joined.items()), doubted=not sure), outputs


def _with_copies(findings: Findings, captured: Captured, bound: Mapping[str, Tensor]) -> Findings:
    """The labels after those tokens were told apart that turn out to be copies, which may show others."""
    copied, laid_out, tried = frozenset[str](), dict[str, LaidOut](), set[str]()
    for _ in range(MOST_COPIES):
        more = where_copied(findings) - copied
        laid = {name: each for name, each in where_laid_out(findings).items() if name not in tried}
        tried |= laid.keys()
        copied, laid_out = copied | more, {**laid_out, **laid}
        again = Labelling(captured, bound, findings.guess, copied, laid_out).run() if more or laid else None
        if again is not None and (features := nowhere_apart(again, laid)):
            laid_out = {name: each for name, each in laid_out.items() if name not in features}
            again = Labelling(captured, bound, findings.guess, copied, laid_out).run()
        if again is None:
            break
        findings = again
    return findings


class Labelling:
    """One pass over the graph: real tensors and labels side by side."""

    def __init__(
        self,
        captured: Captured,
        bound: Mapping[str, Tensor],
        guess: Guess,
        copied: frozenset[str] = frozenset(),
        laid_out: Mapping[str, LaidOut] = MappingProxyType({}),
    ) -> None:
        self.graph = captured.graph
        self.placeholders = {p.node: p for p in captured.placeholders}
        self.bound = bound
        self.guess, self.copied, self.laid_out = guess, copied, laid_out
        self.ledger = Ledger(batch=guess.batch, batch_axis=guess.axis)
        self.values: dict[fx.Node, Value] = {}
        self.real: dict[fx.Node, Any] = {}
        self.refuted: fx.Node | None = None
        """The operation that joins what would be samples."""
        self.outputs: tuple[Tensor, ...] = ()
        """What the graph gave, once it was run to its end."""

    def run(self) -> Findings | None:
        """What is seen; None as soon as information crosses what was taken for the batch."""
        with torch.no_grad(), same_random_numbers():  # each run draws the same
            return self._run()

    def _run(self) -> Findings | None:
        last_use = {arg: node for node in self.graph.graph.nodes for arg in node.all_input_nodes}
        output: fx.Node | None = None
        for node in self.graph.graph.nodes:
            if node.op == "output":
                output = node
                break
            self._step(node)
            if self.ledger.crossing and self.guess.axis is not None:
                self.refuted = node
                return None
            for used in node.all_input_nodes:
                if last_use[used] is node:
                    self.real.pop(used, None)
                    self._settle(used)
        for node in self.values:
            self._settle(node)
        assert output is not None
        nodes = [n for n in output.args[0] if isinstance(n, fx.Node)]  # type: ignore[union-attr]
        self.outputs = tuple(self.real[node] for node in nodes)
        return Findings(
            ledger=self.ledger,
            outputs=tuple(self.values.get(n, NOTHING) for n in nodes),
            values=self.values,
            guess=self.guess,
        )

    def _settle(self, node: fx.Node) -> None:
        """Forget tensors that were kept for an operation to come."""
        value = self.values.get(node)
        if isinstance(value, Value) and value.unsummed is not SETTLED:
            self.values[node] = replace(value, unsummed=SETTLED)

    def _step(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.real[node] = self.bound[node.name]
            self.values[node] = self._placeholder(node, self.placeholders[node.name])
            return
        if node.op == "get_attr":
            self.real[node] = getattr(self.graph, str(node.target))
            return
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.real[n])
        result = node.target(*args, **kwargs)  # type: ignore[operator]
        self.real[node] = result
        if isinstance(result, Tensor):
            self.ledger.shapes[node.name] = tuple(result.shape)
        self.values[node] = self._label(node, args, kwargs, result)

    def _label(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        if node.target is operator.getitem:
            source, place = cast(tuple[fx.Node, int], node.args)
            whole: Any = self.values.get(source, NOTHING)
            value = whole[place] if isinstance(whole, tuple) else replace(whole, slots=())
            return replace(value, origin=node.name)
        if not isinstance(result, Tensor | list | tuple):
            return NOTHING
        call = Call(node, args, kwargs, result, self.values, self.ledger)
        value = self._transfer(call)
        if isinstance(value, tuple):
            return value
        value = value.having(partial=follow(call, value.unsummed.partial))
        if isinstance(result, Tensor) and not all(_fits(slot, result) for slot in value.slots):
            self.ledger.remarks.failures[node.name] = "labels of another shape than the result"
            value = self._lose(call)
        if node.name in self.laid_out:
            value = laid_apart(node, value, self.laid_out[node.name], tuple(result.shape), self.ledger)
        if node.name in self.copied and isinstance(result, Tensor):
            value = apart(node, value, tuple(result.shape), self.ledger)
        if isinstance(result, Tensor) and result.dtype == torch.bool:
            return replace(
                value, slots=tuple(s for s in value.slots if s.strength == DORMANT), origin=node.name
            )
        return value if value.origin is not None else replace(value, origin=node.name)

    def _transfer(self, call: Call) -> Any:
        function = TABLE.get(call.op) or TABLE.get(call.op.removesuffix("_"))
        if function is None and is_pointwise(call.node):
            function = pointwise
        if function is None:
            return self._lose(call)
        try:
            value = function(call)
        except (RuntimeError, LookupError, ValueError, AssertionError, TypeError) as error:
            self.ledger.remarks.failures[call.node.name] = f"{type(error).__name__}: {error}"
            return self._lose(call)
        if call.op.endswith("_") and isinstance(value, Value) and isinstance(call.node.args[0], fx.Node):
            self.values[call.node.args[0]] = replace(value, origin=call.node.name)
        return value

    def _lose(self, call: Call) -> Value:
        operands = [o for o in call.operands() if o.value.labelled and o.tensor.is_floating_point()]
        value = call.carry(*call.operands()) if call.operands() else NOTHING
        if not operands:
            raw = any(self.ledger.tokens.is_raw(operand.value.dormant) for operand in call.operands())
            if raw and isinstance(call.node.target, torch._ops.HigherOrderOperator):
                return self._lost(call, value)  # there is a graph in it, which may attend
            if raw and self._is_data(call.result):
                self.ledger.remarks.unfollowed[call.node] = STEM
            return value
        if isinstance(call.result, Tensor) and not call.result.numel():
            return replace(value, slots=())  # nothing came out: no box was found, say
        probed = by_experiment(call)
        if probed is not None:
            self.ledger.remarks.probed.append(call.node)
            return probed
        return self._lost(call, value)

    def _lost(self, call: Call, value: Value) -> Value:
        self.ledger.remarks.losses[call.node.name] = call.node
        return replace(value, lost=value.lost | {call.node.name}, softmaxes=frozenset())

    def _is_data(self, result: Any) -> bool:
        parts = result if isinstance(result, tuple | list) else (result,)
        return any(isinstance(part, Tensor) and part.is_floating_point() and part.ndim for part in parts)

    def _placeholder(self, node: fx.Node, placeholder: Placeholder) -> Value:
        tensor = self.bound[node.name]
        is_input = placeholder.kind == "input"
        value = Value(root=placeholder.path, from_input=is_input, origin=node.name)
        if not is_input and not serves_as_data(node):
            return value
        if not is_input and not tensor.is_floating_point() and tensor.dtype == torch.bool:
            return value
        return replace(value, slots=(self._elements(tensor, placeholder),))

    def _elements(self, tensor: Tensor, placeholder: Placeholder) -> Slot:
        """Dormant labels: the number of each element, within its sample where the tensor has the batch
        axis."""
        is_input = placeholder.kind == "input"
        listed = self.guess.listed.get(placeholder.path) if is_input else None
        axis = self.guess.axis_of(placeholder.path, tensor) if is_input else None
        shape = [1 if place == axis else size for place, size in enumerate(tensor.shape)]
        # numbers worked out from integers (masks) are positions, not data; ids count once they are embedded
        data = is_input and tensor.is_floating_point()
        root = Root(placeholder.path, is_input, STRONG if data else WEAK)
        start = self.ledger.tokens.elements.reserve(root, shape)
        codes = torch.arange(torch.Size(shape).numel()).view(shape) + start
        samples: Tensor | int = -1
        if listed is not None:
            samples = listed
        elif axis is not None:
            samples = torch.arange(self.guess.batch).view(
                [-1 if p == axis else 1 for p in range(tensor.ndim)]
            )
        elif self.guess.batch == 1 and is_input:
            samples = 0
        return Slot(compact(encode(samples, codes)), DORMANT)


def _fits(slot: Slot, result: Tensor) -> bool:
    shape = slot.labels.shape
    return len(shape) == result.ndim and all(a in (1, b) for a, b in zip(shape, result.shape, strict=True))


def has_transfer_function(node: fx.Node) -> bool:
    """Whether it is known what the operation does to labels."""
    name = op_name(node)
    return name in TABLE or name.removesuffix("_") in TABLE or is_pointwise(node)


def is_pointwise(node: fx.Node) -> bool:
    """True if ATen itself says that the operation works element by element."""
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise in tags:
        return True
    name = op_name(node).removesuffix("_").removeprefix("aten::")
    functional = getattr(torch.ops.aten, name, None)
    overload = getattr(functional, str(getattr(node.target, "_overloadname", "")), None)
    return torch.Tag.pointwise in getattr(overload, "tags", ())


def serves_as_data(node: fx.Node) -> bool:
    """False for a parameter that is only ever the weight, bias or statistic of some layer."""
    for user in node.users:
        if op_name(user) in PASSING:
            if serves_as_data(user):
                return True
            continue
        schema = getattr(user.target, "_schema", None)
        if schema is None:
            return True
        names = [a.name for a, value in zip(schema.arguments, user.args, strict=False) if value is node]
        names += [name for name, value in user.kwargs.items() if value is node]
        if not names or any(name not in WEIGHT_ARGUMENTS for name in names):
            return True
    return False
