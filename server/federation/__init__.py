"""The federation: who is in it, how anybody comes in, and who vouches for its server."""
