"""A trained model made smaller or faster for devices, and kept only where that wins."""
