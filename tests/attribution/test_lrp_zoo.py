"""LRP on models of every family: all rule sets run, and the CVPR 2021 one tells where all of it went."""

from __future__ import annotations

import re

import pytest
import torch
from zoo import built, traced

NAMES = (
    "bert_masked_lm-sdpa albert-sdpa deberta-eager gpt2-sdpa llama-sdpa gemma2-eager mixtral-eager "
    "gpt_oss-eager deepseek_v3-sdpa t5-sdpa bart-sdpa whisper-sdpa deit-sdpa beit-sdpa swin-sdpa "
    "perceiver-eager torchvision_swin_v2 clip-sdpa siglip-sdpa blip2_qformer-sdpa lxmert-eager vilt-eager "
    "llava-sdpa nn_encoder nn_decoder nn_transformer mha-cross mha-zero_attn"
)
LOSSY = "detr-sdpa conditional_detr-sdpa sam-sdpa torchvision_maxvit mha-bias_kv"
"""Models where sums without any positive term, or values that are constants, take some of it."""
TOLD = re.compile(r"(\S+) of (\S+) reached the tokens, (\S+) constants")


@pytest.mark.parametrize("name", [*NAMES.split(), *LOSSY.split()])
def test_lrp_runs_and_accounts_for_its_relevance(name: str) -> None:
    _, inputs, expected = built(name)
    for method in ("lrp", "attnlrp", "transformer_attribution"):
        result = traced(name).explain(inputs, target=expected.target, output=expected.output, method=method)
        assert all(torch.isfinite(part).all() for part in result.relevance.values())
        assert any(part.abs().max() > 0 for part in result.relevance.values())
        if method == "lrp" and name not in LOSSY.split():
            (note,) = (n for n in result.notes if n.startswith("relevance, per sample"))
            for reached, start, constants in TOLD.findall(note):
                assert float(reached) + float(constants) == pytest.approx(float(start), abs=1e-3)
