"""What happens in a block at each position by itself, a file per kind."""
