"""The index convention that every part keeps.

A row is `tokens[0..T-1]` with targets. `memory[:, i]`, i = 0..T, is the memory after reading
`tokens[:, :i]`; `memory[:, 0]` is the empty memory. `targets[:, i]` is what must be predicted from
`memory[:, i]`. The transition is `(memory[:, i], tokens[:, i]) -> memory[:, i + 1]`.
"""

IGNORE = -1
"""A target at which no answer is asked. Dynamics still count there; past `length`, nothing does."""

FREE_RUNNING_ACCURACY = "free_running_accuracy"
"""The term of a validation that says how often an RNN is right on its own."""
