"""Small command-line tools of the scripts."""
