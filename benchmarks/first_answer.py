"""What is waited for before the first explanation: a trace, over a forward pass of the same run.

    python benchmarks/first_answer.py            # real sizes with random weights: some minutes of one core
    python benchmarks/first_answer.py bert gpt2  # some of them

Processor time of one thread. ``beyond export``: what a trace takes more than `torch.export` alone, in forward
passes: one of the model, one of the graph, and the labels.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

import fxplain

ROUNDS = 3
Made = tuple[nn.Module, dict[str, Any]]


def ids(vocabulary: int, tokens: int) -> torch.Tensor:
    return torch.randint(3, vocabulary, (1, tokens))


def bert() -> Made:
    model = transformers.BertForSequenceClassification(transformers.BertConfig())
    return model, {"input_ids": ids(30000, 128), "attention_mask": torch.ones(1, 128, dtype=torch.long)}


def vit() -> Made:
    size = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**size, num_labels=1000))
    return model, {"pixel_values": torch.randn(1, 3, 224, 224)}


def gpt2() -> Made:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    return model, {"input_ids": ids(50000, 512)}


def t5() -> Made:
    size = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "use_cache": False}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**size))
    return model, {"input_ids": ids(30000, 128), "decoder_input_ids": ids(30000, 32)}


def whisper() -> Made:
    layers = {"encoder_layers": 12, "decoder_layers": 12, "d_model": 768, "encoder_attention_heads": 12}
    wide = {
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "use_cache": False,
    }
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**layers, **wide))
    return model, {"input_features": torch.randn(1, 80, 3000), "decoder_input_ids": ids(50000, 8)}


CASES: dict[str, tuple[str, Callable[[], Made]]] = {
    "bert": ("BERT-base, 128 tokens", bert),
    "vit": ("ViT-L/16 at 224", vit),
    "gpt2": ("GPT-2 small, 512 tokens", gpt2),
    "t5": ("T5-base, 128 and 32 tokens", t5),
    "whisper": ("Whisper small, 1500 and 8 tokens", whisper),
}


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'case':34}{'forward':>9}{'export':>8}{'trace':>8}{'beyond export':>15}   (in forward passes)")
    for name in sys.argv[1:] or CASES:
        title, make = CASES[name]
        torch.manual_seed(0)
        model, inputs = make()
        model.eval()
        ways = (
            lambda: model(**inputs),  # noqa: B023 (run within the loop)
            lambda: torch.export.export(model, (), inputs, strict=False),  # noqa: B023
            lambda: fxplain.trace(model, inputs),  # noqa: B023
        )
        with torch.no_grad():
            for way in ways:
                way()  # what is imported and compiled at the first call is not counted
            rounds = [[seconds(way) for way in ways] for _ in range(ROUNDS)]
        forward, export, trace = (statistics.median(times) for times in zip(*rounds, strict=True))
        row = export / forward, trace / forward, (trace - export) / forward
        print(f"{title:34}{forward:7.2f} s{row[0]:8.1f}{row[1]:8.1f}{row[2]:15.1f}", flush=True)


if __name__ == "__main__":
    main()
