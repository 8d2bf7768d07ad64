"""How fast is it, beside the peer, in one run? Ratios, since machines differ and are busy.

Each is ``python -m benchmarks.NAME [--quick] --format json``; ``python -m benchmarks`` runs all.
"""
