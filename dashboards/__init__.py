"""Pages that look on while a run is at work. They read its files and never import torch."""
