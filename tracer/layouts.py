"""The layouts of inputs that a traced model knows: a labelled graph for each, captured when first met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxplain.attention.labelled import Labelled, capture_and_label, label
from fxplain.capture.inputs import Layout, check_layout, flatten
from fxplain.capture.sizes import Sizes
from fxplain.capture.verify import verify
from fxplain.errors import VerificationError
from fxplain.saved.model import SavedModel

MOST_LAYOUTS = 64
"""Of how many layouts the labelled graph is kept."""


@dataclass(frozen=True)
class Layouts:
    """The labelled graphs of one model; the one used last is the last, and the first is forgotten first."""

    model: Any
    known: dict[str, Labelled]
    _sizes: Sizes = field(default_factory=Sizes)

    @staticmethod
    def of(labelled: Labelled) -> Layouts:
        """A model of which one layout is known."""
        return Layouts(labelled.captured.model, {_key(labelled.captured.layout): labelled})

    def labelled_for(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], check: bool
    ) -> tuple[Labelled, dict[str, Tensor], float]:
        """The labelled graph for these inputs, the tensors they bind, and how far it is from the model.

        Args:
            check: compare graph and model also where this layout was compared before.
        """
        _, layout = flatten(self.model, args, kwargs)
        known = self.known.pop(_key(layout), None)
        if known is not None:
            self.known[_key(layout)] = known
            bound = known.captured.bind(args, kwargs)
        elif isinstance(self.model, SavedModel):
            check_layout(next(iter(self.known.values())).captured.layout, layout)  # raises
        if known is not None and not known.same_inputs(bound):
            followed = self._followed(known, layout, args, kwargs)
            if followed is not None:
                return followed[0], bound, followed[1]
            known = None
        if known is None:
            before = self._sizes.strategies((one.captured for one in self.known.values()), layout)
            labelled = self._keep(layout, capture_and_label(self.model, args, kwargs, before))
            return labelled, labelled.captured.bind(args, kwargs), labelled.captured.verified
        # a recorded graph holds constants of the weights too: it is compared again even on its own input
        again = check or known.captured.specialised
        verified = verify(known.captured, args, kwargs) if again else known.captured.verified
        if known.findings.ledger.data_dependent and not known.captured.specialised:
            known = label(known.captured, bound)
        return known, bound, verified

    def _followed(
        self, known: Labelled, layout: Layout, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Labelled, float] | None:
        """A recorded graph, labelled for other inputs that take its path, and how far it is from the model
        there; None where they take another path."""
        tensors, _ = flatten(self.model, args, kwargs)
        if not known.captured.holds_for(tensors):
            return None
        try:
            verified = verify(known.captured, args, kwargs)
        except VerificationError:  # what was computed outside of torch leaves no trace in the path
            return None
        return self._keep(layout, label(known.captured, known.captured.bind(args, kwargs))), verified

    def _keep(self, layout: Layout, labelled: Labelled) -> Labelled:
        self.known[_key(layout)] = labelled
        if len(self.known) > MOST_LAYOUTS:
            del self.known[next(iter(self.known))]
        return labelled


def _key(layout: Layout) -> str:
    return f"{layout.args!r} {sorted(layout.kwargs.items())!r} {layout.tensors!r}"
