"""Settings of the stages that use an RNN."""

from typing import Annotated, Literal

from pydantic import Field

from smtkit.config.base import Config, DeviceConfig, Flag, NonNegative, Positive, Seed

Split = Literal["train", "validation", "test"]


class EvaluateConfig(DeviceConfig):
    """Compare the RNN with its teacher and with n-grams.

    The RNN runs freely, from its empty memory. The result is a table of bits per byte, or per
    token, over ranges of positions; for tasks, also of accuracies.
    """

    main = ("split", "windows", "lengths", "gradients", "cost")

    split: Annotated[Split, Flag()] = "test"
    """Split that is evaluated."""
    windows: Annotated[Positive, Flag()] = 256
    """Number of windows, or rows of a task or images, spread evenly over the split. Raise it for
    smaller standard errors."""
    lengths: Annotated[Positive, Flag()] = 4
    """Length of the text windows, in multiples of the window T of training. Rows of a task and
    images are always read whole. Raise it to test how far the RNN generalizes."""
    batch_size: Positive = 32
    """Windows evaluated at once. Lower it if memory runs out."""
    gradients: Annotated[bool, Flag()] = False
    """Also measure how gradients decay with distance, through the cell and through the decoder."""
    cost: Annotated[bool, Flag()] = False
    """Also measure time and memory of inference per token, after 100 to 100,000 tokens."""
    baseline_tokens: Positive = 50_000_000
    """Number of train tokens on which the n-gram baselines are counted."""


class GenerateConfig(DeviceConfig):
    """Generate text, images or answers with the RNN alone.

    Text is printed as it is generated. Images start from nothing, or complete the upper part of
    images of `tokens`. Answers to rows of a task are printed beside the correct ones.
    """

    main = ("prompt", "temperature", "top_k", "max_tokens", "from_split")

    seed: Annotated[Seed | None, Flag()] = None
    """Seed of sampling; unset: another result each time."""
    prompt: Annotated[str, Flag()] = ""
    """Text to continue; on the command line, `-` reads standard input."""
    from_split: Annotated[Split | None, Flag()] = None
    """Continue images, or answer rows of a task, from this split of `tokens`; unset: images from
    nothing."""
    given: Annotated[Annotated[float, Field(ge=0, lt=1)], Flag()] = 0.5
    """Share of each image that is given, from the top, with `from_split`."""
    samples: Annotated[Positive, Flag()] = 16
    """Number of images, or rows of a task."""
    temperature: Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, Flag()] = None
    """Sampling temperature; 0: the most likely token; unset: 1 for text and images, 0 for tasks."""
    top_k: Annotated[Positive | None, Flag()] = None
    """Sample from the k most likely tokens only; unset: all."""
    top_p: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Flag()] = None
    """Sample from the fewest tokens that have this probability together; unset: all."""
    max_tokens: Annotated[Positive, Flag()] = 500
    """Largest number of tokens of text to generate."""


class ExportConfig(Config):
    """Write an RNN as a program that runs without smtkit.

    The program is one step, from memory and token to memory and logits. The empty memory and the
    tokenizer are written beside it, to a file that ends in .json.
    """

    main = ("format", "quantize", "steps", "windows", "seed")
    requires = {"windows": {"quantize": ("int8",)}}

    format: Annotated[Literal["onnx", "torch-export", "safetensors"] | None, Flag()] = None
    """Format of the file; unset: by its suffix (.onnx, .pt2, .safetensors). `safetensors` holds the
    weights alone."""
    quantize: Annotated[Literal["int8"] | None, Flag()] = None
    """Number format of the weights in an ONNX file; unset: float32. The cost in bits is printed."""
    steps: Annotated[Positive, Flag()] = 1000
    """Tokens over which the program is compared with the RNN."""
    windows: Annotated[Positive, Flag()] = 64
    """Validation windows of `tokens` on which the cost of `quantize` is measured."""
    seed: Annotated[Seed, Flag()] = 0
    """Seed of the tokens that the RNN draws for the comparison."""


class ReportConfig(DeviceConfig):
    """Compare runs on one HTML page.

    The page shows encoder, rnn and evaluation artifacts side by side: loss curves, results, drift,
    the shape of memory, samples, cost and lineage. It has no scripts and loads nothing. Needs
    matplotlib: pip install 'smtkit[figures]'.
    """

    main = ("title", "prompts", "samples", "max_tokens", "temperature")

    title: Annotated[str, Flag(metavar="TEXT")] = "smtkit report"
    """Title of the page."""
    prompts: Annotated[list[str], Flag("prompt", metavar="TEXT")] = Field(default_factory=list)
    """Text that every RNN continues, repeatable; none: from the empty memory."""
    samples: Annotated[NonNegative, Flag()] = 2
    """Number of texts per prompt, each with another seed; images: eight times as many."""
    max_tokens: Annotated[Positive, Flag()] = 300
    """Largest number of tokens of a text."""
    temperature: Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)], Flag()] = 0.8
    """Temperature of sampling; 0: the likeliest token."""
    windows: Annotated[Positive, Flag()] = 32
    """Windows of the validation split whose memories are shown."""
