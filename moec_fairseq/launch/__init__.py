"""Starts the processes of a training job, and ends them all when one ends badly."""
