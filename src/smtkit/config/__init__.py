"""Settings: one schema per stage, and `resolve`, which fills one in."""

from smtkit.config.base import LIMITS, RUNTIME_KEYS, Config, Device, Flag, Seed, flatten
from smtkit.config.corpus import PixelConfig, SynthesizeConfig, TokenizeConfig
from smtkit.config.evaluation import EvaluateConfig, ExportConfig, GenerateConfig, ReportConfig
from smtkit.config.layering import layer, resolve
from smtkit.config.methods import (
    PredictiveStateConfig,
    RolloutConfig,
    TransitionDataConfig,
    TransitionObjectiveConfig,
    WindowConfig,
)
from smtkit.config.networks import (
    CellConfig,
    DecoderConfig,
    EncoderConfig,
    MemoryConfig,
    ReadoutConfig,
)
from smtkit.config.settings import Setting, settings_of, without_effect
from smtkit.config.training import (
    ExtractLabelsConfig,
    Method,
    TrainEncoderConfig,
    TrainingConfig,
    TrainRnnConfig,
)
