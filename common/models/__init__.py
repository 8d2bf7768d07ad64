"""Which networks exist, and what stands before them: registry, preprocessing, fixed features.

The rule: importing this package, or the registry's names, imports no torch; building a model does.
"""
