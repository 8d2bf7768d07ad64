"""Check replies, then combine them: exactly, in any order, by any Flower strategy."""
