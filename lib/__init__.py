"""Workbench for zero-shot human-object interaction research; the map of its rooms is in lib/README.md."""
