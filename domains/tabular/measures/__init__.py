"""What a synthetic table is worth: how like the real one it is, how useful, and what it gives away."""

from .assessing import Assessment, Fidelity, Privacy, assess
from .pair import Pair, encode_pair

__all__ = ["Assessment", "Fidelity", "Pair", "Privacy", "assess", "encode_pair"]
