"""Records to predict, from files of any length."""
