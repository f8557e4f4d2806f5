"""Explanations of a few inputs while a model trains: as files, in TensorBoard, or at Weights & Biases."""

from fxplain.training.callback import ExplainCallback
from fxplain.training.loggers import Folder, Logger, TensorBoard, WeightsAndBiases

__all__ = ["ExplainCallback", "Folder", "Logger", "TensorBoard", "WeightsAndBiases"]
