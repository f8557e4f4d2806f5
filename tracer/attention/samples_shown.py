"""What a labelling run says of the guess of where the samples lie."""

from __future__ import annotations

import torch
from torch import fx

from fxplain.capture.captured import Captured
from fxplain.labels.findings import Findings
from fxplain.labels.labels import samples_of


def names_samples(findings: Findings) -> bool:
    """Whether some token is of a sample: where none is, what lies along the axis (ends of edges) are none.

    The things in a list are samples where each has its own place in the output.
    """
    if findings.listed:
        outputs = [samples_of(slot.labels) for value in findings.outputs for slot in value.active]
        return any(len(torch.unique(own[own >= 0])) == findings.batch for own in outputs)
    sites = [slot for site in findings.ledger.sites for slot in (site.rows, site.cols)]
    slots = [*sites, *(slot for value in findings.outputs for slot in value.active)]
    return not slots or any(bool((samples_of(slot.labels) >= 0).any()) for slot in slots)


def shown(captured: Captured, findings: Findings) -> bool:
    """Whether the outputs look as if the samples lay where they are taken to lie.

    All samples have a part in them; of no known sample, they have an axis of as many places as there are
    samples. A single sample has an axis of size 1 there.
    """
    output = next(node for node in captured.graph.graph.nodes if node.op == "output")
    nodes = [node for node in output.args[0] if isinstance(node, fx.Node)]
    shapes = [findings.ledger.shapes.get(node.name, ()) for node in nodes]
    if findings.batch > 1:
        own = [samples_of(slot.labels).reshape(-1) for value in findings.outputs for slot in value.active]
        told = torch.unique(torch.cat(own)) if own else torch.zeros(0)
        if bool((told >= 0).any()):
            return int((told >= 0).sum()) == findings.batch
    return any(findings.batch in shape[:2] for shape in shapes)
