"""What the first process of a distributed run does for all of them."""

from collections.abc import Callable

import jax
import numpy as np


def in_first_process(work: Callable[[], None]) -> None:
    """Run `work` in the first process; all processes go on when it is done, or none does.

    Raises:
      OSError, ValueError: what `work` raises; in the other processes an OSError.
    """
    if jax.process_count() == 1:
        work()
        return
    from jax.experimental import multihost_utils  # slow to import

    error: OSError | ValueError | None = None
    if jax.process_index() == 0:
        try:
            work()
        except (OSError, ValueError) as raised:
            error = raised
    failed = np.any(multihost_utils.process_allgather(np.array(error is not None)))
    if error is not None:
        raise error
    if failed:
        raise OSError("the first process could not write what the run needs, and says why.")
