"""What the census says of a softmax whose largest weights are picked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxplain


class Detector(nn.Module):
    """Queries read a picture; their class scores are ranked, or choose what is computed next."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.patches, self.queries = nn.Linear(4, 8), nn.Parameter(torch.randn(5, 8))
        self.query, self.classes, self.boxes = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.experts, self.how = nn.Parameter(torch.randn(4, 8, 8)), how

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.patches(image)
        q = self.queries.expand(len(x), -1, -1)
        q = q + (self.query(q) @ x.mT).softmax(-1) @ x
        scores, boxes = self.classes(q).softmax(-1), self.boxes(q).sigmoid()
        if self.how == "classes":
            best, label = scores[..., :-1].max(-1)
            return {"scores": best, "labels": label, "boxes": boxes * 2}
        if self.how == "boxes":
            best, index = scores[..., :-1].flatten(1).topk(3)
            picked = boxes.gather(1, (index // 3)[..., None].expand(-1, -1, 4))
            return {"scores": best, "labels": index % 3, "boxes": picked}
        if self.how == "proposals":
            best, index = scores[..., :-1].amax(-1).topk(3)
            picked = q.gather(1, index[..., None].expand(-1, -1, 8))
            return {"scores": best, "boxes": self.boxes(picked)}
        best, index = scores.topk(2)
        if self.how == "experts":
            made = torch.einsum("bqd,bqked->bqke", q, self.experts[index])
            return {"logits": self.classes((made * best[..., None]).sum(2))}
        made = torch.stack([q.relu() * k for k in range(4)], 2)
        picked = made.gather(2, index[..., None].expand(-1, -1, -1, 8))
        return {"logits": (picked * best[..., None]).sum(2)}


ROLES = {
    "classes": ("class scores", "its largest weights are classes that the model returns"),
    "boxes": ("class scores", "by its largest weights tokens are picked"),
    "proposals": ("class scores", "by its largest weights tokens are picked"),
    "experts": ("expert router", "its largest weights select among parts of the network"),
    "versions": ("expert router", "its largest weights select among parts of the network"),
}


@pytest.mark.parametrize("how", ROLES)
def test_classes_are_ranked_and_experts_are_chosen(how: str) -> None:
    torch.manual_seed(0)
    census = fxplain.trace(Detector(how).eval(), torch.randn(1, 6, 4)).census
    assert [entry.role for entry in census] == ["attention", ROLES[how][0]]
    assert census[1].reason == ROLES[how][1]


class Sorted(nn.Module):
    """Scores of the best experts are normalised, and reach what they weigh in the order of the experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scores, self.head = nn.Embedding(20, 8), nn.Linear(8, 4), nn.Linear(8, 3)
        self.experts = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + (x @ x.mT).softmax(-1) @ x
        tokens = x.flatten(0, 1)
        best, index = self.scores(tokens).topk(2)
        order = index.flatten().argsort()
        weights = best.softmax(-1).reshape(-1, 1)[order]
        given = tokens.repeat_interleave(2, 0)[order].unsqueeze(1)
        made = (given @ self.experts[index.flatten()[order]]).squeeze(1) * weights
        return self.head((x + made[order.argsort()].view(*index.shape, -1).sum(1).view_as(x))[:, 0])


def test_one_weight_for_all_features_is_no_feature_gate() -> None:
    torch.manual_seed(0)
    census = fxplain.trace(Sorted().eval(), torch.arange(10).view(2, 5)).census
    assert [entry.role for entry in census if entry.op == "softmax"] == ["attention", "expert router"]
