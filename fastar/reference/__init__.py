"""Plain PyTorch, one file per op: the definition, the oracle of the tests, and the fallback."""

from fastar import _identity

_identity.require()
