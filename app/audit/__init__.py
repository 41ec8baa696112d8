"""What an auditor re-runs: event encoding, Merkle tree, checkpoints, export and offline verification. Pure: no I/O."""
