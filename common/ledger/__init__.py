"""What has been spent? A pure chain of signed entries, and a thin durable file that holds it."""

from common.ledger.entry import Entry, Kind, verify_chain
from common.ledger.file import Ledger

__all__ = ["Entry", "Kind", "Ledger", "verify_chain"]
