"""Trains language models with the stock `Trainer` of transformers."""

from .metrics import ExpertMetrics
from .runs import RunReport, RunSettings, train_model

__all__ = ["ExpertMetrics", "RunReport", "RunSettings", "train_model"]
