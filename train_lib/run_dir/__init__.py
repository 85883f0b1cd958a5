"""What a run keeps on the disk: its workdir, lock, config, checkpoints, metrics log and clock, with
the digests that protect them. Whoever writes to a workdir or reads from it does so by this room.
"""
