"""What changes from step to step and is not data: written to the device once a step, so that a replayed graph reads it."""

from __future__ import annotations

STEP_SIZE, INV_SQRT_C2, PENALTY, CLIP, STEP, AUX, N_CONTROLS = range(7)
"""Places of: learning rate / (1 − β1^t); 1/√(1 − β2^t); λ; factor of the gradient; t, from 1; the weight of AuxK."""

TOTAL, MSE, NESTED, OTHER, L0, N_REPORTED = range(6)
"""Places in what a step reports: the loss, the squared error of the whole dictionary, the mean over prefixes, penalties
and AuxK, active features a token."""
