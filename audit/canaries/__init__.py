"""Canaries: records that are made to be found, and what finding them says of a mechanism.

Import the modules themselves: ``trial`` and ``testing`` beside it need torch; ``bounds``,
``interval``, ``design`` and ``record`` need the standard library alone.
"""
