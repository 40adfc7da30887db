"""Layers whose weight is one matrix product through few channels.

Entry points: the settings `bottleneck.Bottleneck` and `tied_bottleneck.TiedBottleneck`.
Must not import another family of layers.
"""
