"""What a network's modules are and what they run: plain layers, counting rules, one pass of an image, initial weights.

`lowrank.compression.trace` plans a network with it. Must not import other packages of this project but `layers`,
`networks`, `utils` and `errors`.
"""
