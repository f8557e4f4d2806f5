"""``torchvision:NAME`` and ``timm:NAME``: architectures, published weights, near names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import toy_folders as toys

from fxplain.adapters import LoadOptions, load
from fxplain.errors import InputError, LoadError

RANDOM = LoadOptions(random_weights=True)


def test_torchvision_with_random_weights(tmp_path: Path) -> None:
    loaded = load("torchvision:swin_t", RANDOM)
    assert type(loaded.model) is torchvision.models.SwinTransformer
    inputs, display = loaded.prepare(image=toys.picture(tmp_path / "p.png"))
    assert inputs["x"].shape == (1, 3, 224, 224)
    assert abs(int(display.images["x"][0][112, 20, 0]) - 250) <= 1
    assert loaded.example()["x"].shape == (1, 3, 224, 224)
    assert loaded.notes == ("the weights are random",)
    assert loaded.labels == {}


def test_timm_with_random_weights(tmp_path: Path) -> None:
    loaded = load("timm:vit_tiny_patch16_224", RANDOM)
    inputs, display = loaded.prepare(image=[toys.picture(tmp_path / "p.png")] * 2)
    assert inputs["x"].shape == (2, 3, 224, 224)
    assert abs(int(display.images["x"][1][112, 20, 0]) - 250) <= 1
    assert loaded.example()["x"].shape == (1, 3, 224, 224)
    again = load("timm:vit_tiny_patch16_224", RANDOM)
    assert torch.equal(loaded.model.cls_token, again.model.cls_token)


def test_they_take_no_text() -> None:
    for name in ("torchvision:swin_t", "timm:vit_tiny_patch16_224"):
        with pytest.raises(InputError, match="no tokenizer"):
            load(name, RANDOM).prepare(text="a cat")


@pytest.mark.parametrize(
    ("name", "near"),
    [("torchvision:vit_b16", "'vit_b_16'"), ("timm:vit_tiny_patch16_242", "'vit_tiny_patch16_224'")],
)
def test_unknown_names_offer_near_ones(name: str, near: str) -> None:
    with pytest.raises(LoadError, match=near):
        load(name, RANDOM)


@pytest.mark.parametrize("name", ["torchvision:", "timm:", "torchvision:zzzzzz", "timm:zzzzzz"])
def test_unknown_names_without_near_ones(name: str) -> None:
    with pytest.raises(LoadError, match="no model of that name"):
        load(name, RANDOM)


def test_published_weights_are_read_as_tensors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    with torch.random.fork_rng():
        published = torchvision.models.squeezenet1_0().state_dict()

    def fetch(url: str, **kwargs: Any) -> Any:
        asked.update(kwargs, url=url)
        return published

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    loaded = load("torchvision:squeezenet1_0")
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True
    assert loaded.labels[281] == "tabby"
    assert torch.equal(loaded.model.state_dict()["classifier.1.bias"], published["classifier.1.bias"])


def test_without_network_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    monkeypatch.setattr(timm, "create_model", fail)
    for name in ("torchvision:squeezenet1_0", "timm:vit_tiny_patch16_224"):
        with pytest.raises(LoadError, match="add --random-weights") as caught:
            load(name)
        assert "no route to host" in str(caught.value)


def test_timm_names_its_classes() -> None:
    from fxplain.adapters.timm import _labels

    labels = _labels(timm.create_model("vit_tiny_patch16_224"))
    assert labels[3].startswith("tiger shark")
    assert len(labels) == 1000
