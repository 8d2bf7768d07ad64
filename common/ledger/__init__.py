"""What has been spent? A pure chain of signed entries, and a thin durable file that holds it."""

from common.ledger.entry import Entry, Kind, verify_chain
from common.ledger.file import Ledger
from common.ledger.head import Head, SignedHead

__all__ = ["Entry", "Head", "Kind", "Ledger", "SignedHead", "verify_chain"]
