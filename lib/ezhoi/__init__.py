"""EZ-HOI: a frozen CLIP adapted by guided prompts to zero-shot human-object interaction detection (NeurIPS 2024)."""
