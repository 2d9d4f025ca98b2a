"""One curve's sizes and the noise of its measurement."""

import numpy as np

SIZES = np.array([0.0, *(200.0 * 2.0 ** np.arange(10))])
NOISE = np.exp(0.01 * np.array([1, -1, 0.5, 1, -2, -0.5, 1, -1, 0.2, 0.3, -0.4]))
