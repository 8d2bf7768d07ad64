"""Check, offline and without trusting anyone, what privacy was spent.

``python -m audit`` needs ``cryptography`` and the standard library alone.
"""
