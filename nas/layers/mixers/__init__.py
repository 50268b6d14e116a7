"""What lets the positions of a map see one another, a file per kind."""
