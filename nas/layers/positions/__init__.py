"""Where a position of the map stands, a file per kind."""
