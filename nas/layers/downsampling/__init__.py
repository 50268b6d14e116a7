"""From one stage to the next, a file per kind."""
