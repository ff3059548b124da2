"""Starts the ranks of a training and ends them together: the Python half of ``scripts/train.sh``.

Nothing here imports torch or fairseq, nor anything else of the package but ``rank``, which runs inside a rank: the
script runs this folder as a package of its own, so that a mistake on the command line is answered at once.
"""
