"""How long an explanation takes, and what it holds, beside one forward and one backward pass: the floor.

    python benchmarks/speed.py [--large] [CASE ...]

Prints, for each case, ratios of one run (medians, the ways taken in turn): fxplain in row mode and in matrix
mode, and a plain implementation of Chefer et al., ICCV 2021, by hooks on eager attention, all over the floor.
Times are processor times of one thread on the CPU; peaks are those of live tensors, seen by the dispatcher.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BartConfig, GPT2Config, ViTConfig

import fxplain


@dataclass(frozen=True)
class Case:
    """A model, its input, and what is explained."""

    build: Callable[[str], nn.Module]
    """From the name of the attention, ``sdpa`` or ``eager``."""
    inputs: dict[str, Tensor]
    target: Any
    score: Callable[[Any], Tensor]
    embeddings: str
    """The module whose output the floor's backward pass ends at."""


def vit(size: int, layers: int, width: int, batch: int = 1) -> Case:
    def build(attention: str) -> nn.Module:
        config = ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            image_size=size,
            num_labels=1000,
            attn_implementation=attention,
        )
        return transformers.ViTForImageClassification(config)

    pixels = torch.randn(batch, 3, size, size)
    return Case(build, {"pixel_values": pixels}, 5, lambda out: out.logits[:, 5].sum(), "vit.embeddings")


def gpt(tokens: int, layers: int, width: int) -> Case:
    def build(attention: str) -> nn.Module:
        config = GPT2Config(
            n_embd=width,
            n_layer=layers,
            n_head=width // 64,
            n_positions=tokens,
            vocab_size=2000,
            use_cache=False,
            attn_implementation=attention,
        )
        return transformers.GPT2LMHeadModel(config)

    ids = torch.randint(0, 2000, (1, tokens))
    return Case(
        build, {"input_ids": ids}, (tokens - 1, 5), lambda out: out.logits[0, -1, 5], "transformer.drop"
    )


def bart(source: int, said: int, layers: int, width: int) -> Case:
    def build(attention: str) -> nn.Module:
        config = BartConfig(
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=width // 64,
            decoder_attention_heads=width // 64,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            vocab_size=2000,
            max_position_embeddings=source,
            use_cache=False,
            attn_implementation=attention,
        )
        return transformers.BartForConditionalGeneration(config)

    inputs = {
        "input_ids": torch.randint(3, 2000, (1, source)),
        "decoder_input_ids": torch.randint(3, 2000, (1, said)),
    }
    embeddings = "model.encoder.layernorm_embedding"
    return Case(build, inputs, (said - 1, 5), lambda out: out.logits[0, -1, 5], embeddings)


SMALL: dict[str, Callable[[], Case]] = {
    "vit 224": lambda: vit(224, 6, 384),
    "vit 224, batch 4": lambda: vit(224, 6, 384, 4),
    "vit 512": lambda: vit(512, 4, 384),
    "gpt 1024": lambda: gpt(1024, 2, 384),
    "gpt 2048": lambda: gpt(2048, 2, 384),
    "bart 512 -> 64": lambda: bart(512, 64, 3, 384),
}
LARGE: dict[str, Callable[[], Case]] = {
    "vit-b 224": lambda: vit(224, 12, 768),
    "vit-b 224, batch 16": lambda: vit(224, 12, 768, 16),
    "vit-b 512": lambda: vit(512, 12, 768),
    "gpt2 4096": lambda: gpt(4096, 12, 768),
    "bart-base 1024 -> 128": lambda: bart(1024, 128, 6, 768),
    "decoder 1024": lambda: gpt(1024, 2, 768),
    "decoder 8192": lambda: gpt(8192, 2, 768),
}


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that tensors made inside hold at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: held for key, held in self.live.items() if not held[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return result


def floor(model: nn.Module, case: Case) -> None:
    """One forward pass, and one backward to the embeddings; no gradient of parameters."""
    held: list[Tensor] = []

    def begin(module: nn.Module, given: Any, made: Tensor) -> Tensor:
        held.append(made.detach().requires_grad_())
        return held[-1]

    hook = model.get_submodule(case.embeddings).register_forward_hook(begin)
    try:
        torch.autograd.grad(case.score(model(**case.inputs)), held[0])
    finally:
        hook.remove()


def by_hooks(model: nn.Module, case: Case) -> Tensor:
    """Eqs. 5 and 6 for one stream, as the paper's code does: every map kept, with its gradient."""
    embedded: list[Tensor] = []

    def begin(module: nn.Module, given: Any, made: Tensor) -> Tensor:
        embedded.append(made.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_submodule(case.embeddings).register_forward_hook(begin)
    try:
        out = model(**case.inputs, output_attentions=True)
        gradients = torch.autograd.grad(case.score(out), out.attentions)
    finally:
        hook.remove()
    size = out.attentions[0].shape[-1]
    relevancy = torch.eye(size).expand(len(out.attentions[0]), size, size)
    for weights, gradient in zip(out.attentions, gradients, strict=True):
        relevancy = relevancy + (weights.detach() * gradient).clamp(min=0).mean(1) @ relevancy
    return relevancy


def frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def measure(name: str, case: Case, rounds: int) -> None:
    """Print one line: the floor in milliseconds and megabytes, the other ways as ratios to it."""
    model, eager = frozen(case.build("sdpa")), frozen(case.build("eager"))
    traced = fxplain.trace(model, case.inputs)
    ways: dict[str, Callable[[], Any]] = {
        "floor": lambda: floor(model, case),
        "rows": lambda: traced.explain(case.inputs, case.target),
        "matrix": lambda: traced.explain(case.inputs, case.target, mode="matrix"),
    }
    if "decoder_input_ids" not in case.inputs:
        ways["hooks, eager"] = lambda: by_hooks(eager, case)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for place in range(rounds + 1):
        for way, run in ways.items():
            start = time.process_time()
            run()
            if place:  # the first round warms up
                times[way].append(time.process_time() - start)
    median = {way: statistics.median(of_way) for way, of_way in times.items()}
    peaks = {}
    for way, run in ways.items():
        gc.collect()
        with Peak() as peak:
            run()
        peaks[way] = peak.bytes
    columns = [
        f"{median[w] / median['floor']:.2f} {peaks[w] / peaks['floor']:.2f}" for w in ways if w != "floor"
    ]
    line = f"{1e3 * median['floor']:.0f} ms, {peaks['floor'] / 1e6:.0f} MB"
    print(f"| {name} | {line} | {' | '.join(columns)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", help=", ".join([*SMALL, *LARGE]))
    parser.add_argument("--large", action="store_true", help="the sizes of real models")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    known = SMALL | LARGE
    print("| case | floor | rows: time, peak | matrix: time, peak | hooks on eager maps: time, peak |")
    print("|---|---|---|---|---|")
    for name in options.cases or (LARGE if options.large else SMALL):
        measure(name, known[name](), options.rounds)


if __name__ == "__main__":
    main()
