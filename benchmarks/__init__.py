"""Measurements of this project; nothing here is imported by it. README.md lists them."""
