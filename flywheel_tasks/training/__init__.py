"""What every TRL training run shares: precision, LoRA, resume, integrity, curves."""
