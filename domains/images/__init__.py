"""Natural images: folders of pictures to and from model space; completed, generated, checked."""

from .domain import ImageDomain
from .holes import parse_holes
from .options import ImageOptions

__all__ = ["ImageDomain", "ImageOptions", "parse_holes"]
