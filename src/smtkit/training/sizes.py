"""Sizes as messages show them."""


def gigabytes(count: float) -> str:
    """A number of bytes in gigabytes of 10^9, with three digits: `1.23 GB`."""
    return f"{count / 1e9:,.3g} GB"
