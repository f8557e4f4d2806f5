"""The tasks of models of transformers, torchvision and timm, by the classes that they list for each task.

Nothing is imported for it: a model whose library has not been imported is not one of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import nn

from fxplain.tasks import Task, TaskKind

_MAPPINGS: Mapping[TaskKind, str] = {
    "next token": "CAUSAL_LM SEQ_TO_SEQ_CAUSAL_LM SPEECH_SEQ_2_SEQ VISION_2_SEQ IMAGE_TEXT_TO_TEXT "
    "MULTIMODAL_LM",
    "words": "MASKED_LM CTC",
    "classes": "SEQUENCE_CLASSIFICATION IMAGE_CLASSIFICATION AUDIO_CLASSIFICATION VIDEO_CLASSIFICATION "
    "TOKEN_CLASSIFICATION MULTIPLE_CHOICE NEXT_SENTENCE_PREDICTION VISUAL_QUESTION_ANSWERING "
    "TABLE_QUESTION_ANSWERING AUDIO_FRAME_CLASSIFICATION AUDIO_XVECTOR",
    "queries": "OBJECT_DETECTION ZERO_SHOT_OBJECT_DETECTION INSTANCE_SEGMENTATION UNIVERSAL_SEGMENTATION "
    "IMAGE_SEGMENTATION",
    "places": "SEMANTIC_SEGMENTATION",
}
"""Task -> those of transformers' ``MODEL_FOR_..._MAPPING_NAMES``."""

_OUTPUTS: Mapping[str, TaskKind] = {
    "last_hidden_state": "embedding",
    "pooler_output": "embedding",
    "encoder_last_hidden_state": "embedding",
    "image_embeds": "embedding",
    "text_embeds": "embedding",
    "embeddings": "embedding",
    "prediction_logits": "words",
    "pred_boxes": "boxes",
    "pred_masks": "masks",
    "masks_queries_logits": "masks",
    "predicted_depth": "masks",
}
"""Output -> what it holds, beside the output that a task is about."""

_TEXT_PADDING = ("decoder_attention_mask", "attention_mask")


def task_of(model: Any) -> Task | None:
    """The task of a model of these libraries, or of the only such model in a module that is none of theirs;
    None for any other model."""
    own = _own_task(model)
    if own is not None or not isinstance(model, nn.Module):
        return own
    inner = list(_inside(model, ""))
    if len(inner) != 1:
        return None
    ((path, task),) = inner
    return replace(task, within=path, outputs=(*task.outputs, "output"))


def _inside(module: nn.Module, path: str) -> Iterator[tuple[str, Task]]:
    """The outermost models of these libraries in a module, each with its path."""
    for name, child in module.named_children():
        below = f"{path}.{name}".lstrip(".")
        task = _own_task(child)
        if task is None:
            yield from _inside(child, below)
        else:
            yield below, task


def _own_task(model: Any) -> Task | None:
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
    if kind in ("next token", "words") and hasattr(config, "causal"):  # one class, for the one and the other
        kind = "next token" if config.causal else "words"
    decoder = bool(getattr(config, "is_encoder_decoder", False))
    padding = _TEXT_PADDING[:1] if decoder else _TEXT_PADDING[1:]
    told = partial(Task, padding=padding, others=_OUTPUTS)
    if kind == "next token":
        return told(kind)
    if kind == "embedding":
        return told(kind, outputs=("last_hidden_state", "pooler_output"))
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    if getattr(config, "problem_type", None) == "regression" or (
        kind == "classes" and config.num_labels == 1
    ):
        return told("values")
    names = _names(config)
    if kind == "queries":
        nothing = None if type(model).__name__ in _open() else config.num_labels
        outputs = ("logits", "class_queries_logits")
        return told(kind, names, outputs, nothing=nothing, boxes="pred_boxes")
    return told(kind, names, independent=several)


def _names(config: Any) -> dict[int, str]:
    """The names of classes that a configuration gives; none where it has those that all begin with."""
    names = {int(index): str(name) for index, name in dict(getattr(config, "id2label", None) or {}).items()}
    return {} if all(name == f"LABEL_{index}" for index, name in names.items()) else names


@cache
def _open() -> frozenset[str]:
    """Names of detectors whose classes are whatever texts they are given."""
    lists = importlib.import_module("transformers.models.auto.modeling_auto")
    given = getattr(lists, "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES", {}).values()
    return frozenset(one for each in given for one in ((each,) if isinstance(each, str) else each))


def _of_torchvision(model: Any) -> Task:
    module = type(model).__module__
    if ".segmentation." in module:
        return Task("places", outputs=("out", "aux"))
    if ".detection." in module:
        return Task("unknown")
    return Task("classes", outputs=("output",))
