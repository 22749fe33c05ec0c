"""One file per on-disk format of SAEs, or an entry point of the group `lensae.formats`."""
