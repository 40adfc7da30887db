"""Time and memory of single layers, beside dense layers and other libraries."""
