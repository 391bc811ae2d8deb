"""Files that run an RNN without smtkit: one step as a program, and beside it what it starts from.

The program is (memory (B, K, D) float32, token (B,) int64) -> (next_memory (B, K, D), logits
(B, V)), with any B.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smtkit import __version__
from smtkit.corpus.subwords import SentencePieceTokenizer
from smtkit.corpus.tokenizers import TextTokenizer
from smtkit.errors import UsageError
from smtkit.inference.parity import FloatArray, IntArray, StepFunction
from smtkit.inference.trained import TrainedRNN

INPUTS, OUTPUTS = ("memory", "token"), ("next_memory", "logits")


class Step(nn.Module):
    """One step of an RNN and the logits of what follows."""

    def __init__(self, rnn: TrainedRNN) -> None:
        super().__init__()
        self.network = rnn.network
        self.eval()

    def forward(self, memory: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        after = self.network.step(memory, token)
        return after, self.network.readout(after)


def description(rnn: TrainedRNN) -> dict[str, Any]:
    """The data that a program needs beside the step, as JSON: the empty memory (K, D), its logits
    (V,), and the tokenizer; for text also the bytes of each token (hexadecimal), and the token that
    ends a document."""
    tokenizer = rnn.tokenizer
    found = {
        "smtkit_version": __version__,
        "rnn": rnn.artifact.manifest.digest,
        "memory_shape": [rnn.slots, rnn.slot_width],
        "vocabulary_size": rnn.vocabulary_size,
        "trained_window": rnn.window,
        "empty_memory": rnn.empty_memory.tolist(),
        "empty_logits": rnn.logits(rnn.start())[0].tolist(),
        "tokenizer": tokenizer.description(),
    }
    if isinstance(tokenizer, TextTokenizer):
        found["end_of_document"] = tokenizer.end_of_document
        found["token_bytes"] = [bytes(text).hex() for text in tokenizer.token_bytes]
    return found


def write_beside(rnn: TrainedRNN, path: Path) -> list[Path]:
    """Writes `description` to the file of that name that ends in `.json` and, for a tokenizer that
    is a sentencepiece model, this to one that ends in `.sentencepiece`; returns their paths."""
    written = [path.with_suffix(".json")]
    written[0].write_text(json.dumps(description(rnn)) + "\n", encoding="utf-8")
    if isinstance(rnn.tokenizer, SentencePieceTokenizer):
        written.append(path.with_suffix(".sentencepiece"))
        written[1].write_bytes(rnn.tokenizer.model)
    return written


def write_onnx(rnn: TrainedRNN, path: Path) -> None:
    """Writes the step as an ONNX program."""
    with _quiet():
        program = torch.onnx.export(
            Step(rnn),
            _example(rnn),
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=_any_batch(),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:  # they name files of this machine
        node.metadata_props.clear()
        node.doc_string = None
    program.save(str(path))


def quantize(path: Path, out: Path) -> None:
    """Writes the ONNX program in `path` with weights of 8 bits; activations are quantized as it
    runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(str(path), str(out), weight_type=QuantType.QInt8, per_channel=True)


def onnx_step(path: Path) -> StepFunction:
    """The step that onnxruntime computes from a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def step(memory: FloatArray, token: IntArray) -> tuple[FloatArray, FloatArray]:
        memory, logits = session.run(OUTPUTS, {"memory": memory, "token": token})
        return memory, logits

    return step


def write_torch_export(rnn: TrainedRNN, path: Path) -> None:
    """Writes the step as a program of torch.export."""
    program = torch.export.export(Step(rnn), _example(rnn), dynamic_shapes=_any_batch())
    torch.export.save(program, path)


def torch_export_step(path: Path) -> StepFunction:
    """The step that torch computes from a file of `write_torch_export`."""
    module = torch.export.load(path).module()

    @torch.no_grad()
    def step(memory: FloatArray, token: IntArray) -> tuple[FloatArray, FloatArray]:
        after, logits = module(torch.from_numpy(memory), torch.from_numpy(token))
        return after.numpy(), logits.numpy()

    return step


def check_installed() -> None:
    """Raises UsageError where a package is missing that ONNX needs."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise UsageError(
                f"`format` onnx: {name} is not installed", "pip install 'smtkit[export]'"
            ) from None


def _example(rnn: TrainedRNN) -> tuple[Tensor, Tensor]:
    """Inputs of a batch of 2: programs may be special for 1."""
    return rnn.start(2), torch.zeros(2, dtype=torch.int64)


def _any_batch() -> tuple[dict[int, Any], dict[int, Any]]:
    batch = torch.export.Dim("batch")
    return {0: batch}, {0: batch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what exporters say about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
