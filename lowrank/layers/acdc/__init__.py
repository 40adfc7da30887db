"""ACDC: layers of diagonals and cosine transforms.

Entry point: `layer.ACDC`, its settings; `entries` and `stack` compute weights on a GPU, `triton` holds their kernels.
Must not import another family of layers.
"""
