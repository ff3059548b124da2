"""What several commands need: whole files and locks, steps done once, child processes, progress."""
