"""The link: how a client stays part of a federation, for months."""
