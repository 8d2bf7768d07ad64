"""Do updates travel coded, and how? The plan's table for it; :mod:`common.coding` has the codec.

The rule: what both ends need to agree on the length and form of a coded update is here and in the
model's shapes, and nothing of it travels with an update. Coding comes after the noise, so it is
post-processing and costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.canonical import Json, number
from common.config import Table

METHODS = ("fp16", "int8", "top-k")


@dataclass(frozen=True)
class Compression:
    """How updates are coded on their way to the server.

    Args:
        method: ``fp16``, ``int8`` or ``top-k``.
        fraction: of ``top-k``, in (0, 0.5): the share of all values that is sent, rounded up. Half
            of them with their indices would be as long as all without. 0 with other methods.
    """

    method: str
    fraction: float = 0.0

    def json(self) -> Json:
        document: Json = {"method": self.method}
        if self.method == "top-k":
            document["fraction"] = number(self.fraction)
        return document

    @classmethod
    def read(cls, table: Table) -> Compression:
        """Read ``[plan.compression]``."""
        method = table.text("method", choices=METHODS)
        if method != "top-k" and table.has("fraction"):
            raise table.error(
                "fraction",
                f'fraction has no effect with method = "{method}"',
                hint="leave fraction out, or choose top-k",
            )
        fraction = table.number("fraction", above=0, below=0.5) if method == "top-k" else 0.0
        table.done()
        return cls(method, fraction)
