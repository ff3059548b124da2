"""From the checkpoints of a training to translations and scores that others can compare."""
