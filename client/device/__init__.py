"""Receive, verify, keep and run models on a device. Needs no torch and no Flower.

Import the modules themselves: ``home`` (what the owner of the device decides), ``verify`` (may this
release be used?), ``updater`` (get a newer one), ``slots`` (keep it), ``runtime`` (predict).
"""
