"""One file per on-disk format of SAEs."""
