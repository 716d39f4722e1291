"""Commands that make a checkpoint of a checkpoint, one file each, of the steps in `checkpoints.py`."""
