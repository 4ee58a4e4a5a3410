"""Monitors: measure what a training costs and does, and change nothing about it."""
