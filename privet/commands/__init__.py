"""What each command is called, and how its result looks on a terminal."""
