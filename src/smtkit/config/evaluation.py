"""Settings of the stages that use an RNN."""

from typing import Annotated, Literal

from pydantic import Field

from smtkit.config.base import Config, Device, Positive, Seed


class EvaluateConfig(Config):
    """`smtkit eval`."""

    device: Device = "auto"
    """`auto`: CUDA where there is one."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split is read."""
    windows: Positive = 256
    """Windows of `lengths` T tokens, spread evenly over the split."""
    lengths: Positive = 4
    """Of text: how many times the trained window T is read; rows are read whole."""
    batch_size: Positive = 32
    """Windows at a time."""
    gradients: bool = False
    """Also how gradients decay with distance: through the decoder, and through the cell."""
    cost: bool = False
    """Also time a token and memory of inference, beside the teacher reading its context again."""
    baseline_tokens: Positive = 50_000_000
    """Tokens of train on which the n-gram baselines are counted."""


class GenerateConfig(Config):
    """`smtkit generate`."""

    seed: Seed | None = None
    """Of the draws; unset: another result each time."""
    device: Device = "auto"
    """`auto`: CUDA where there is one."""
    prompt: str = ""
    """Text to go on from."""
    from_split: Literal["train", "validation", "test"] | None = None
    """Of images and tasks: go on from rows of this split; unset: images from nothing."""
    given: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of images with `from_split`: the share of each that is given, from the top."""
    samples: Positive = 16
    """Images or rows."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """0: the likeliest token always; unset: 1 for text and images, 0 for tasks."""
    top_k: Positive | None = None
    """Among the k likeliest tokens."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Among the fewest tokens that together have this probability."""
    max_tokens: Positive = 500
    """Of text: stop after so many."""
