"""Dense, slow, independent computations that the fast code is compared with.

Nothing here imports from ``lensllm_jax``: an oracle that shares code with what it judges
proves nothing.
"""

import numpy as np
import scipy.linalg
