"""Exports: a subnet as files that run without `nas`."""
