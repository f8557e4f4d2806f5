"""The tasks of models of transformers, torchvision and timm, by the classes that they list for each task.

Nothing is imported for it: a model whose library has not been imported is not one of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from fxplain.tasks import Task, TaskKind

_MAPPINGS: Mapping[TaskKind, str] = {
    "next token": "CAUSAL_LM SEQ_TO_SEQ_CAUSAL_LM SPEECH_SEQ_2_SEQ VISION_2_SEQ IMAGE_TEXT_TO_TEXT "
    "MULTIMODAL_LM",
    "words": "MASKED_LM",
    "classes": "SEQUENCE_CLASSIFICATION IMAGE_CLASSIFICATION AUDIO_CLASSIFICATION VIDEO_CLASSIFICATION "
    "TOKEN_CLASSIFICATION MULTIPLE_CHOICE NEXT_SENTENCE_PREDICTION VISUAL_QUESTION_ANSWERING "
    "TABLE_QUESTION_ANSWERING",
    "queries": "OBJECT_DETECTION ZERO_SHOT_OBJECT_DETECTION INSTANCE_SEGMENTATION UNIVERSAL_SEGMENTATION",
    "places": "SEMANTIC_SEGMENTATION",
}
"""Task -> those of transformers' ``MODEL_FOR_..._MAPPING_NAMES``."""

_TEXT_PADDING = ("decoder_attention_mask", "attention_mask")


def task_of(model: Any) -> Task | None:
    """The task of a model of these libraries; None for any other model."""
    transformers = sys.modules.get("transformers")
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        return _of_transformers(model)
    torchvision = sys.modules.get("torchvision.models")
    if torchvision is not None and type(model).__module__.startswith("torchvision.models."):
        return _of_torchvision(model)
    if "timm" in sys.modules and type(model).__module__.startswith("timm.models."):
        return Task("classes", outputs=("output",))
    return None


@cache
def _classes() -> dict[str, TaskKind]:
    """Name of a class of transformers -> its task."""
    lists = importlib.import_module("transformers.models.auto.modeling_auto")
    found: dict[str, TaskKind] = {}
    for kind, names in _MAPPINGS.items():
        for name in names.split():
            listed = getattr(lists, f"MODEL_FOR_{name}_MAPPING_NAMES", {})
            for given in listed.values():
                for one in (given,) if isinstance(given, str) else given:
                    found.setdefault(one, kind)
    for given in getattr(lists, "MODEL_MAPPING_NAMES", {}).values():
        for one in (given,) if isinstance(given, str) else given:
            found.setdefault(one, "embedding")
    return found


def _of_transformers(model: Any) -> Task:
    config = model.config
    kind: TaskKind = next(
        (_classes()[c.__name__] for c in type(model).__mro__ if c.__name__ in _classes()), "unknown"
    )
    if kind == "unknown" and model.can_generate():
        kind = "next token"
    if kind == "next token":
        decoder = bool(getattr(config, "is_encoder_decoder", False))
        return Task(kind, padding=_TEXT_PADDING[:1] if decoder else _TEXT_PADDING[1:])
    if kind == "embedding":
        return Task(kind, outputs=("last_hidden_state", "pooler_output"), padding=("attention_mask",))
    names = {int(index): str(name) for index, name in dict(getattr(config, "id2label", None) or {}).items()}
    if all(name == f"LABEL_{index}" for index, name in names.items()):  # what every configuration starts from
        names = {}
    if getattr(config, "problem_type", None) == "regression" or (
        kind == "classes" and config.num_labels == 1
    ):
        return Task("values")
    if kind == "queries":
        outputs = ("logits", "class_queries_logits")
        closed = not hasattr(model, "text_model") and bool(names)
        nothing = len(names) if closed and _has_nothing(model) else None
        return Task(kind, names, outputs, (), nothing, nothing is None, "pred_boxes")
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    padding = ("attention_mask",) if kind == "classes" else ()
    return Task(kind, names, padding=padding, independent=several)


def _has_nothing(model: Any) -> bool:
    """Whether a detector has a class for no object: its head has one output more than there are labels."""
    count = model.config.num_labels
    heads = (module for module in model.modules() if getattr(module, "out_features", None) == count + 1)
    return next(heads, None) is not None


def _of_torchvision(model: Any) -> Task:
    module = type(model).__module__
    if ".segmentation." in module:
        return Task("places", outputs=("out", "aux"))
    if ".detection." in module:
        return Task("unknown")
    return Task("classes", outputs=("output",))
