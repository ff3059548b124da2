"""Checkpoints whose experts are spread over ranks: names, content, files that belong together, tools."""
