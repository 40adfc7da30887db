"""Compression of trained networks: error against size, beside a public peer where one is at hand."""
