"""What tells attention where its tokens stand, a file per kind."""
