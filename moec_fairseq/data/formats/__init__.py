"""Sentences out of files: plain or compressed, in archives, tables, markup and translation memories."""
