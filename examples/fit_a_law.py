"""One curve, or many at once: what will the loss be on sixteen times the examples?"""

import numpy as np

import lensllm_jax as lens

sizes = np.array([200, 400, 800, 1600, 3200, 6400])
losses = 40.0 / (20.0 + sizes**0.5) + 1.0  # nats per byte, say

fit = lens.fit_law("rectified", sizes, losses)
print(fit.params, fit.predict(np.array([102400.0])))

fits = lens.fit_laws("power", sizes, np.stack([losses, 1.1 * losses]))  # one compiled call
print([fits[i].log_rmse for i in range(2)])
