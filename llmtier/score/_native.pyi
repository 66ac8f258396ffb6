from typing import final

import numpy as np
from numpy.typing import NDArray

REVISION: int

@final
class Reader:
    def __new__(cls, kinds: NDArray[np.uint16], values: NDArray[np.uint64], /) -> Reader: ...
    def read(self, text: str, n_whole: int, /) -> tuple[bytes, bytes, tuple[float, ...]]: ...

@final
class Head:
    def __new__(
        cls,
        table: NDArray[np.float32],
        log_counts: NDArray[np.float64],
        means: NDArray[np.float64],
        inverse_deviations: NDArray[np.float64],
        first: NDArray[np.float64],
        second: NDArray[np.float64],
        most: float,
        /,
    ) -> Head: ...
    def outputs(
        self,
        buckets: NDArray[np.intp] | NDArray[np.uint16],
        counts: NDArray[np.intp] | NDArray[np.uint16],
        numeric: tuple[float, ...],
        /,
    ) -> list[float]: ...

@final
class Guesser:
    def __new__(
        cls,
        evidence: NDArray[np.float32],
        prior: NDArray[np.float64],
        effects: NDArray[np.float64],
        shift: int,
        /,
    ) -> Guesser: ...
    def effects(self, buckets: NDArray[np.intp] | NDArray[np.uint16], /) -> list[float]: ...
