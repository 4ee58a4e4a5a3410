"""Configuration files that ship with the package, found by the command line under their short names."""
