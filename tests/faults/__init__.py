"""Fault injection: kills, signals, damaged and hostile files, a store that fails.

`python -m faults` runs it (`make test-faults`): docs/reliability.md shows what it found.
"""
