"""A whole federation in one machine's memory, or on a Ray cluster."""
