"""Receive, verify, keep and run models on a device. Needs no torch and no Flower.

Import the modules themselves: ``home`` and ``policy`` (what the owner of the device decides),
``identity`` and ``floor`` (who it is, how far it came), ``verify`` (may this release be used?),
``terms`` (does the owner still allow it?), ``updater`` (get a newer one), ``slots`` (keep it),
``preparing`` and ``prepared`` (what the next start takes as done), ``rollback`` (go back), ``log``
and ``status`` (what was decided, and what is so now), ``runtime`` (predict).
"""
