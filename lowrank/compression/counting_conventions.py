"""What counts as a mult-add: the project's own convention, and that of the study of 2018 and 2019.

`standard` counts the multiplications of convolutions and linear maps, and of other products that torch's counter knows.
`study` adds what the study's script added: the inputs of each ReLU call, the kernel area for each output of a pooling
module, and the biases of linear maps. It counted nothing for batch norm, ReLU6, shuffles, concatenation, additions, and
functional or adaptive pooling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Convention = Literal["standard", "study"]
CONVENTIONS: tuple[Convention, ...] = ("standard", "study")


@dataclass(frozen=True)
class StudyExtras:
    """What the study counted besides convolutions and linear maps, for one image.

    Attributes:
        relu_inputs: elements that were passed to ReLU.
        pooling: kernel areas of pooling modules, times their outputs.
        linear_biases: biases of linear maps, times their positions.
    """

    relu_inputs: int = 0
    pooling: int = 0
    linear_biases: int = 0

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.relu_inputs + self.pooling + self.linear_biases
