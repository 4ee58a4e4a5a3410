"""Regularization: hold the weights, or the outputs, that earlier experiences need."""
