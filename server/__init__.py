"""Coordinate rounds, check and aggregate updates, keep checkpoints, and release signed models."""
