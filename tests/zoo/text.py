"""Toy text models of transformers: encoders, decoders, mixtures of experts, encoder-decoders."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from zoo.spec import Builder, Case, Expected, Inputs, Site, ids, make, mask, rows, selves

LENGTH = 7
PADDED: dict[str, Any] = {"input_ids": ((), (5, 6))}
ENCODER: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "num_labels": 3,
}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED: dict[str, Any] = ENCODER | SPECIAL | {"num_key_value_heads": 2}
DECODER: dict[str, Any] = GROUPED | {"head_dim": 8}
GPT2 = SPECIAL | {
    "vocab_size": 99,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "num_labels": 3,
}


def reported(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
    """``attentions`` of an encoder or decoder: one per layer, in order."""
    with torch.no_grad():
        return list(enumerate(model(**inputs, output_attentions=True).attentions))


def encoder_case(model: nn.Module, modules: str, **expected: Any) -> Case:
    inputs = {"input_ids": ids(), "attention_mask": mask()}
    fields: dict[str, Any] = {
        "sites": selves("input_ids", 4, LENGTH, modules, 2),
        "readout": rows(("input_ids", (0,))),
        "padded": PADDED,
        "maps": reported,
    } | expected
    return model, inputs, Expected(**fields)


def bert(attn: str) -> Case:
    config = hf.BertConfig(**ENCODER, attn_implementation=attn)
    return encoder_case(make(lambda: hf.BertForSequenceClassification(config)), "encoder.layer.{}.attention")


def bert_masked_lm(attn: str) -> Case:
    config = hf.BertConfig(**ENCODER, attn_implementation=attn)
    model = make(lambda: hf.BertForMaskedLM(config))
    read = rows(("input_ids", (3,)))
    return encoder_case(model, "encoder.layer.{}.attention", target=(3, 5), readout=read)


def roberta(attn: str) -> Case:
    config = hf.RobertaConfig(**ENCODER, pad_token_id=1, attn_implementation=attn)
    model = make(lambda: hf.RobertaForSequenceClassification(config))
    model_, inputs, expected = encoder_case(model, "encoder.layer.{}.attention")
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 1)
    return model_, inputs, expected


def albert(attn: str) -> Case:
    config = hf.AlbertConfig(**ENCODER, embedding_size=16, num_hidden_groups=1, attn_implementation=attn)
    model = make(lambda: hf.AlbertForSequenceClassification(config))
    # one layer, called twice
    return encoder_case(model, "albert_layer_groups.0.albert_layers.0.attention", marks=("shared",))


def distilbert(attn: str) -> Case:
    config = hf.DistilBertConfig(
        vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=32, num_labels=3,
        attn_implementation=attn,
    )  # fmt: skip
    model = make(lambda: hf.DistilBertForSequenceClassification(config))
    return encoder_case(model, "transformer.layer.{}.attention")


def electra(attn: str) -> Case:
    config = hf.ElectraConfig(**ENCODER, embedding_size=16, attn_implementation=attn)
    return encoder_case(
        make(lambda: hf.ElectraForSequenceClassification(config)), "encoder.layer.{}.attention"
    )


def deberta(attn: str) -> Case:
    config = hf.DebertaV2Config(
        **ENCODER, relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False,
        pooler_hidden_size=32, position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm",
        attn_implementation=attn,
    )  # fmt: skip
    model = make(lambda: hf.DebertaV2ForSequenceClassification(config))
    return encoder_case(model, "encoder.layer.{}.attention")


def causal(model: nn.Module, modules: str = "layers.{}.self_attn", **expected: Any) -> Case:
    fields = {"target": (4, 11), "readout": rows(("input_ids", (4,)))} | expected
    return encoder_case(model, modules, **fields)


def gpt2(attn: str) -> Case:
    config = hf.GPT2Config(**GPT2, attn_implementation=attn)
    return causal(make(lambda: hf.GPT2LMHeadModel(config)), "transformer.h.{}.attn")


def gpt2_classifier(attn: str) -> Case:
    config = hf.GPT2Config(**GPT2, attn_implementation=attn)
    model, inputs, expected = causal(
        make(lambda: hf.GPT2ForSequenceClassification(config)),
        "transformer.h.{}.attn",
        target=1,
        # the last token that is not padding: another one in each sample
        readout=({"input_ids": (6,)}, {"input_ids": (4,)}),
    )
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 0)
    return model, inputs, expected


def llama(attn: str) -> Case:
    return causal(make(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER, attn_implementation=attn))))


def gemma2(attn: str) -> Case:
    config = hf.Gemma2Config(
        **DECODER, attn_logit_softcapping=5.0, final_logit_softcapping=10.0, sliding_window=4,
        query_pre_attn_scalar=8, attn_implementation=attn,
    )  # fmt: skip
    return causal(make(lambda: hf.Gemma2ForCausalLM(config)))


EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}


def mixtral(attn: str) -> Case:
    config = hf.MixtralConfig(**DECODER, num_local_experts=4, num_experts_per_tok=2, attn_implementation=attn)
    return causal(make(lambda: hf.MixtralForCausalLM(config)), not_attention={"router": 2})


def qwen2_moe(attn: str) -> Case:
    config = hf.Qwen2MoeConfig(
        **GROUPED, **EXPERTS, num_experts=4, shared_expert_intermediate_size=16,
        attn_implementation=attn,
    )  # fmt: skip
    return causal(make(lambda: hf.Qwen2MoeForCausalLM(config)), not_attention={"router": 2})


def qwen3_moe(attn: str) -> Case:
    config = hf.Qwen3MoeConfig(**DECODER, **EXPERTS, num_experts=4, attn_implementation=attn)
    return causal(make(lambda: hf.Qwen3MoeForCausalLM(config)), not_attention={"router": 2})


def gpt_oss(attn: str) -> Case:
    config = hf.GptOssConfig(
        **DECODER, num_local_experts=4, num_experts_per_tok=2, sliding_window=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attn_implementation=attn,
    )  # fmt: skip
    return causal(make(lambda: hf.GptOssForCausalLM(config)), not_attention={"router": 2})


def deepseek_v3(attn: str) -> Case:
    config = hf.DeepseekV3Config(
        **{**GROUPED, "num_key_value_heads": 4}, **EXPERTS, n_routed_experts=4,
        n_shared_experts=1, n_group=2, topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4,
        qk_nope_head_dim=8, v_head_dim=12, first_k_dense_replace=1, attn_implementation=attn,
    )  # fmt: skip
    return causal(make(lambda: hf.DeepseekV3ForCausalLM(config)))


SOURCE, GOAL = 7, 5


def seq2seq_reported(model: nn.Module, inputs: Inputs) -> list[tuple[int, Tensor]]:
    """Encoder layers first, then self and cross attention of each decoder layer in turn."""
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    found = list(out.encoder_attentions)
    for own, cross in zip(out.decoder_attentions, out.cross_attentions, strict=True):
        found += [own, cross]
    return list(enumerate(found))


def seq2seq_sites(source: str, encoder: str, own: str, cross: str, size: int = SOURCE) -> tuple[Site, ...]:
    sites = list(selves(source, 4, size, encoder, 2))
    goal = ("decoder_input_ids",)
    for layer in range(2):
        sites.append(Site("self", goal, goal, 4, GOAL, GOAL, own.format(layer)))
        sites.append(Site("encoder_decoder", goal, (source,), 4, GOAL, size, cross.format(layer)))
    return tuple(sites)


def seq2seq(model: nn.Module, encoder: str, own: str, cross: str) -> Case:
    inputs = {
        "input_ids": ids(length=SOURCE),
        "attention_mask": mask(length=SOURCE),
        "decoder_input_ids": ids(length=GOAL, seed=3),
    }
    expected = Expected(
        sites=seq2seq_sites("input_ids", encoder, own, cross),
        target=(3, 11),
        readout=rows(("decoder_input_ids", (3,))),
        padded=PADDED,
        maps=seq2seq_reported,
    )
    return model, inputs, expected


def t5(attn: str) -> Case:
    config = hf.T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8, dropout_rate=0.0, decoder_start_token_id=0,
        attn_implementation=attn,
    )  # fmt: skip
    return seq2seq(
        make(lambda: hf.T5ForConditionalGeneration(config)),
        "encoder.block.{}.layer.0.SelfAttention",
        "decoder.block.{}.layer.0.SelfAttention",
        "decoder.block.{}.layer.1.EncDecAttention",
    )


BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
BART_MODULES = (
    "encoder.layers.{}.self_attn",
    "decoder.layers.{}.self_attn",
    "decoder.layers.{}.encoder_attn",
)


def bart(attn: str) -> Case:
    config = hf.BartConfig(**BART, vocab_size=99, max_position_embeddings=32, attn_implementation=attn)
    return seq2seq(make(lambda: hf.BartForConditionalGeneration(config)), *BART_MODULES)


def marian(attn: str) -> Case:
    config = hf.MarianConfig(
        **BART, vocab_size=99, max_position_embeddings=32, pad_token_id=0, decoder_start_token_id=0,
        attn_implementation=attn,
    )  # fmt: skip
    return seq2seq(make(lambda: hf.MarianMTModel(config)), *BART_MODULES)


def whisper(attn: str) -> Case:
    from zoo.spec import floats

    config = hf.WhisperConfig(
        **BART, vocab_size=99, num_mel_bins=6, max_source_positions=8, max_target_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, attn_implementation=attn,
    )  # fmt: skip
    inputs = {"input_features": floats(2, 6, 16), "decoder_input_ids": ids(length=GOAL, seed=3)}
    expected = Expected(
        # two convolutions make 8 tokens of 16 frames
        sites=seq2seq_sites("input_features", *BART_MODULES, size=8),
        target=(3, 11),
        readout=rows(("decoder_input_ids", (3,))),
        maps=seq2seq_reported,
    )
    return make(lambda: hf.WhisperForConditionalGeneration(config)), inputs, expected


EAGER, BOTH = ("eager",), ("eager", "sdpa")
TABLE = {
    bert: BOTH,
    bert_masked_lm: BOTH,
    roberta: BOTH,
    albert: BOTH,
    distilbert: BOTH,
    electra: BOTH,
    deberta: EAGER,
    gpt2: BOTH,
    gpt2_classifier: BOTH,
    llama: BOTH,
    gemma2: EAGER,
    mixtral: BOTH,
    qwen2_moe: BOTH,
    qwen3_moe: BOTH,
    gpt_oss: EAGER,
    deepseek_v3: BOTH,
    t5: BOTH,
    bart: BOTH,
    marian: BOTH,
    whisper: BOTH,
}
TEXT: dict[str, Builder] = {
    f"{build.__name__}-{attn}": partial(build, attn) for build, kinds in TABLE.items() for attn in kinds
}
