"""Text for training: fetch, clean and split a corpus, cut it into pieces, and score translations of it."""
