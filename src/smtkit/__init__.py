"""Train nonlinear recurrent networks without backpropagation through time.

Every module keeps one index convention. A row is `tokens[0..T-1]` with targets. `memory[:, i]`,
i = 0..T, is the memory after reading `tokens[:, :i]`; `memory[:, 0]` is the empty memory.
`targets[:, i]` is predicted from `memory[:, i]`. The transition is
`(memory[:, i], tokens[:, i]) -> memory[:, i + 1]`.
"""

__version__ = "0.1.0"

IGNORE = -1
"""A position without a target. Dynamics still count there; past `length`, nothing does."""
