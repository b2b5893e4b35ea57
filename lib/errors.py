"""The shape of an error about a file or a setting: where, what was found, what was expected, what mends it."""

from __future__ import annotations

from pathlib import Path


class FoundExpected(ValueError):
    """`<where>: found <found>, expected <expected>` and a line with the mend; rooms subclass it to be told apart."""

    def __init__(self, where: str | Path, found: str, expected: str, mend: str) -> None:
        super().__init__(where, found, expected, mend)  # all arguments, so that it survives the way out of a worker

    where = property(lambda self: self.args[0])
    found = property(lambda self: self.args[1])
    expected = property(lambda self: self.args[2])
    mend = property(lambda self: self.args[3])

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}, expected {self.expected}\n  mend: {self.mend}"
