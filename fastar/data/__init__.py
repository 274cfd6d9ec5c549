"""Data sets that need no download, one file each."""

from fastar import _identity

_identity.require()
