"""Layers whose weight is a decomposed tensor of several dimensions: tensor train, Tucker, CP.

Entry points: the settings `tensor_train.TensorTrain`, `tucker.Tucker`, `cp.CP`; `tensor_train_ops` has what they share.
Must not import another family of layers.
"""
