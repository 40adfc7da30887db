"""Low-rank layers: one matrix product through few channels, or a whole kernel as a chain of smaller convolutions.

Entry points: the settings `bottleneck.Bottleneck`, `tied_bottleneck.TiedBottleneck`, `svd.SVD`,
`spatial_svd.SpatialSVD`, `tucker2.Tucker2`, `cp_kernel.CPKernel` and `tensor_train_kernel.TensorTrainKernel`.
Must not import another family of layers.
"""
