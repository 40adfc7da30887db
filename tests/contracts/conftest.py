"""Use one thread: the layers under test are tiny, and the suite shares its machine."""

import torch

torch.set_num_threads(1)
