"""Policy training: candidates, rejection sampling, SFT, DPO, RL."""
