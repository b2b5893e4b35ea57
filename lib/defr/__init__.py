"""DEFR: which HOIs an image shows, without boxes: language-initialised classifier, LSE-Sign loss (spec defr.md)."""
