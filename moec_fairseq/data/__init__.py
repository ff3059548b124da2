"""Corpora: from messages, published files or your own text to fairseq's binary data."""
