"""Vocabulary, annotations, zero-shot splits, captions, descriptions, and the embedded stick world."""
