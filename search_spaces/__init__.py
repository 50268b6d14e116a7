"""Families of architectures: their dataclasses, their spaces and their builders, a file per family."""
