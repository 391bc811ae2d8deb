# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first RNN
#
# This notebook trains a byte-level RNN by Supervised Memory Training on a text, and looks at
# what its
# memory holds. It takes about five minutes on one CPU core. Put a text of at least 500 kB in
# `text.txt`, or
# use the source of Python's standard library, as the next cell does.

# %%
import math
import sysconfig
from pathlib import Path

import torch

import smtkit

steps = 300  # updates of the teacher; the RNN makes five times as many

# %%
library = Path(sysconfig.get_path("stdlib"))
source = "\n".join(p.read_text(errors="ignore") for p in sorted(library.glob("*.py"))[:80])
Path("text.txt").write_text(source, encoding="utf-8")
print(f"{len(source):,} characters")

# %% [markdown]
# ## Tokens
#
# Every byte is a token. A tenth of the text is held out, from which validation and test are made.

# %%
tokens = smtkit.tokenize("text.txt", "tokens", tokenizer="byte", overwrite=True)
tokens.statistics["splits"]["train"]

# %% [markdown]
# ## What to remember
#
# The teacher's encoder writes memories from which its decoder predicts the future. Its memories
# are the labels.

# %%
smtkit.train_encoder(
    "tokens",
    "encoder",
    max_steps=steps,
    window=64,
    learning_rate=5e-3,
    encoder={"memory": "gated"},
    decoder={"kind": "handoff"},
    cell={"width": 192, "normalize": "none", "gate": True, "gate_bias": (-4.0, 1.5)},
    objective={
        "future_length": 32,
        "anchors": 1,
        "dense_weight": 0.3,
        "dynamics_weight": 3.0,
        "readout_weight": 3.0,
        "dynamics_start": 20,
        "dynamics_ramp": 40,
    },
    overwrite=True,
)
smtkit.extract_labels("encoder", "tokens", "labels", max_windows=6000, overwrite=True)

# %% [markdown]
# ## How to update
#
# The RNN starts from the cell that was trained with the teacher, and learns from chains of its
# own rollout.

# %%
trained = smtkit.train_rnn(
    "labels",
    "rnn",
    method="dmt",
    init_from_labels=True,
    max_steps=5 * steps,
    learning_rate=5e-3,
    training={"batch_size": 16},
    rollout={"depth": 16, "backprop": 16},
    objective={"dynamics_weight": 0.3, "readout_weight": 1.0},
    overwrite=True,
)
trained.statistics["validation"]

# %% [markdown]
# ## A sample
#
# The RNN runs alone, from its empty memory.

# %%
rnn = smtkit.load_rnn("rnn")
print(rnn.generate("def ", max_tokens=300, temperature=0.8, seed=0))

# %% [markdown]
# ## How well does it predict?
#
# Bits per byte of a text, and where they go: the nll of each byte.

# %%
text = source[-4000:]
nll = rnn.score(text)
print(f"{float(nll.sum()) / math.log(2) / len(text.encode()):.2f} bits per byte")
worst = nll.topk(5).indices.tolist()
[(text[max(0, i - 10) : i], text[i], round(float(nll[i]), 2)) for i in worst if i < len(text)]

# %% [markdown]
# ## What does the memory hold?
#
# The rank of the memory: how many directions its variance fills. A memory that has collapsed
# fills few.

# %%
memories = rnn.rollout(rnn.encode_text(text)[None])[0].flatten(1)
spectrum = torch.linalg.svdvals(memories - memories.mean(0)).square()
share = spectrum / spectrum.sum()
effective_rank = math.exp(-float((share * share.clamp(min=1e-12).log()).sum()))
print(f"effective rank {effective_rank:.1f} of {memories.shape[1]} numbers")

# %% [markdown]
# How far does the RNN drift from its teacher, when it runs alone?

# %%
teacher = smtkit.load_teacher("encoder")
window = rnn.encode_text(text)[: rnn.window][None]
labels = teacher.encode(window)
drift = (rnn.rollout(window) - labels).square().mean((0, 2, 3)) / labels.var()
[round(float(value), 3) for value in drift[:: max(1, rnn.window // 8)]]
