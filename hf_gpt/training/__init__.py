"""Training by the stock `Trainer`."""

from .runs import ExpertMetrics, RunReport, RunSettings, train_model

__all__ = ["ExpertMetrics", "RunReport", "RunSettings", "train_model"]
