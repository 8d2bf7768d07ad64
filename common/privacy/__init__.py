"""Privacy facts: what happened (events), what it costs (accountants), may it happen (filter), and
where noise comes from (noise).

Import the modules themselves: ``common.privacy.noise`` needs numpy and
``common.privacy.reference`` needs dp-accounting; the other two need only the standard library.
"""
