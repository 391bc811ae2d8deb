"""Evaluation: metrics, n-gram baselines, predictors, drift, gradients and inference cost."""
