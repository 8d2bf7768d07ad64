"""Guard the data, train privately, receive models and run them."""
