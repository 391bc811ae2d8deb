"""What can be set: one schema a stage. `resolve.py` fills them in."""

from smtkit.config.base import RUNTIME_KEYS, Config, Device, Only, Seed, flatten
from smtkit.config.corpus import PixelConfig, SynthesizeConfig, TokenizeConfig
from smtkit.config.evaluation import EvaluateConfig, GenerateConfig
from smtkit.config.networks import (
    CellConfig,
    DecoderConfig,
    EncoderConfig,
    MemoryConfig,
    ReadoutConfig,
)
from smtkit.config.training import (
    ExtractLabelsConfig,
    Method,
    PredictiveStateConfig,
    RolloutConfig,
    TrainEncoderConfig,
    TrainingConfig,
    TrainRnnConfig,
    TransitionDataConfig,
    TransitionObjectiveConfig,
    WindowConfig,
)

__all__ = [
    "RUNTIME_KEYS",
    "CellConfig",
    "Config",
    "DecoderConfig",
    "Device",
    "EncoderConfig",
    "EvaluateConfig",
    "ExtractLabelsConfig",
    "GenerateConfig",
    "MemoryConfig",
    "Method",
    "Only",
    "PixelConfig",
    "PredictiveStateConfig",
    "ReadoutConfig",
    "RolloutConfig",
    "Seed",
    "SynthesizeConfig",
    "TokenizeConfig",
    "TrainEncoderConfig",
    "TrainRnnConfig",
    "TrainingConfig",
    "TransitionDataConfig",
    "TransitionObjectiveConfig",
    "WindowConfig",
    "flatten",
]
