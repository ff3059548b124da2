"""From the archives that a recipe names to the binary data of fairseq."""
