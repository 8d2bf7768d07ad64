"""The link: how clients reach the coordinator, and how a run is driven over it."""
