"""Several launches in a row on simulated people, unattended; what came of them, beside the paper."""
