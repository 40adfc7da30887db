"""Readers of published data sets: Parquet files, image folders, and the sets that come with a library.

Entry points: `read_parquet`, `read_folder`, `read_digits` and `read_torchvision`; each gives an `ImageSource`.
`lowrank.data.dataset` chooses the reader. Must not import: `lowrank.data.dataset` and `lowrank.data.batches`, except
for `synthetic`, which makes a whole data set.
"""
