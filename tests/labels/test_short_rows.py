"""Labels of rows of different lengths."""

import numpy as np
import torch

from conftest import encoder_config, label_rows, numbered_labels, shards
from smtkit.config import ExtractLabelsConfig
from smtkit.methods.bptt import SequenceSampler
from smtkit.networks.loading import load_teacher
from smtkit.stages import extract_labels, train_encoder
from smtkit.storage.artifact import Artifact


def test_labels_give_the_tokens_and_targets_of_their_windows(tmp_path):
    labels = numbered_labels(tmp_path / "labels.arrow", [4, 2, 4], window=6)
    batch = SequenceSampler(labels, batch_size=3, seed=0).batch(0)
    assert sorted(zip(batch.tokens.tolist(), batch.length.tolist(), strict=True)) == [
        ([100 * row + i for i in range(4)], length) for row, length in enumerate([4, 2, 4])
    ]
    assert torch.equal(batch.targets[:, :4], batch.tokens + 50)


def test_labels_of_a_row_do_not_depend_on_its_batch(tmp_path, parity):
    """Padding is neither encoded nor stored."""
    encoder, labels = tmp_path / "encoder", tmp_path / "labels"
    train_encoder.run(encoder_config(data={"window": None}), parity, encoder)
    extract_labels.run(ExtractLabelsConfig(batch_size=5, dtype="float32"), encoder, parity, labels)
    teacher = load_teacher(Artifact.open(encoder, "encoder"))
    for row in label_rows(shards(labels, "train")):
        length = int(row["length"])
        tokens = torch.from_numpy(row["tokens"][:length].astype(np.int64))
        np.testing.assert_allclose(
            row["memory"][: length + 1], teacher.encoder(tokens[None])[0], atol=1e-5
        )
