"""Replay: train on samples of the past together with those of the present."""
