"""Train with DP-SGD: Poisson sampling, per-example gradients, clipping, cryptographic noise."""

from client.training.engine import Engine

__all__ = ["Engine"]
