"""Bounds on what inputs may expand to, checked before anything is decoded."""

from dataclasses import dataclass

from smtkit.config import TokenizeConfig
from smtkit.errors import InputOutputError

_FIELDS = TokenizeConfig.model_fields
_ALWAYS_ALLOWED_BYTES = 2**26  # of a compressed file, expanded
_BYTES_PER_ROW = 64  # so that rows without text count


@dataclass(frozen=True)
class Limits:
    """`max_expansion` bounds what a compressed file may expand to, as a multiple of its size (64
    MiB are always allowed); `max_value_bytes` a value that is held in memory whole. The methods
    raise InputOutputError, which begins with `where`."""

    max_expansion: float = _FIELDS["max_expansion"].default
    max_value_bytes: int = _FIELDS["max_value_bytes"].default

    def allowed_bytes(self, stored_bytes: int) -> float:
        """Largest size a compressed file of `stored_bytes` may expand to."""
        return max(_ALWAYS_ALLOWED_BYTES, self.max_expansion * stored_bytes)

    def check_expansion(self, where: object, size: int, stored_bytes: int) -> None:
        """Fails where `size` bytes are more than a compressed file may expand to."""
        if size > self.allowed_bytes(stored_bytes):
            raise InputOutputError(
                f"{where}: expands to more than {self.max_expansion:g} times its size",
                "`max_expansion` allows more",
            )

    def check_rows(self, where: object, rows: int, stored_bytes: int) -> None:
        """Fails where a compressed file has so many rows that they must be almost empty."""
        if rows * _BYTES_PER_ROW > self.allowed_bytes(stored_bytes):
            raise InputOutputError(
                f"{where}: {rows:,} rows or more in {stored_bytes:,} bytes",
                "`max_expansion` allows more",
            )

    def check_value(self, where: object, what: str, size: int) -> None:
        """Fails where a value of `size` bytes, named `what`, is too large."""
        if size > self.max_value_bytes:
            raise InputOutputError(
                f"{where}: {what} takes more than {self.max_value_bytes:,} bytes",
                "`max_value_bytes` allows more",
            )
