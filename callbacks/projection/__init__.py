"""Projection: change weights only in directions that earlier experiences do not use."""
