"""The small LXMERT and VisualBERT for questions about shapes: classes of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from shape_questions import ANSWERS, FEATURES, LENGTH, WORDS, Questions
from weights import FOLDER, restore, store

HELD_OUT_SEED = 2
"""Of everything a model is measured on; training uses others."""
VQA = ("lxmert", "visual_bert")


def _lxmert() -> Any:
    from transformers import LxmertConfig, LxmertForQuestionAnswering

    return LxmertForQuestionAnswering(
        LxmertConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            num_attention_heads=4,
            intermediate_size=128,
            l_layers=2,
            r_layers=1,
            x_layers=2,
            visual_feat_dim=FEATURES,
            num_qa_labels=len(ANSWERS),
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
            initializer_range=0.1,
        )
    )


def _visual_bert() -> Any:
    from transformers import VisualBertConfig, VisualBertForQuestionAnswering

    return VisualBertForQuestionAnswering(
        VisualBertConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            num_attention_heads=4,
            num_hidden_layers=4,
            intermediate_size=128,
            visual_embedding_dim=FEATURES,
            num_labels=len(ANSWERS),
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
            initializer_range=0.05,
        )
    )


_MAKERS = {"lxmert": _lxmert, "visual_bert": _visual_bert}


def make(name: str) -> Any:
    """The model with weights drawn at random."""
    return _MAKERS[name]()


def keep(name: str, model: Any, about: dict[str, Any], folder: Path = FOLDER) -> None:
    """Store the weights, and beside them what was measured on them."""
    store(name, model, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")


def load(name: str, folder: Path = FOLDER) -> Any:
    """The trained model, in evaluation mode, in float32."""
    return restore(name, make(name), folder / f"{name}.safetensors")


def about(name: str) -> dict[str, Any]:
    """What was measured when it was trained."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def vqa_inputs(name: str, questions: Questions) -> dict[str, torch.Tensor]:
    """The questions as this model is called with them."""
    inputs = {
        "input_ids": questions.input_ids,
        "attention_mask": (questions.input_ids != 0).long(),
        "visual_attention_mask": torch.ones(questions.visual_feats.shape[:2], dtype=torch.long),
    }
    if name == "lxmert":
        return inputs | {"visual_feats": questions.visual_feats, "visual_pos": questions.visual_pos}
    return inputs | {"visual_embeds": questions.visual_feats}


@torch.no_grad()
def accuracy(name: str, model: Any, questions: Questions) -> float:
    """The part of the questions that is answered right."""
    model.eval()
    said = [
        model(**vqa_inputs(name, questions[start : start + 250]), return_dict=False)[0].argmax(-1)
        for start in range(0, len(questions), 250)
    ]
    return float((torch.cat(said) == questions.answers).float().mean())
