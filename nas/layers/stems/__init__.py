"""From pixels to a map, a file per kind."""
