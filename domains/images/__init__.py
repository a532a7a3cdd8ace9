"""Natural images: folders of pictures to and from model space."""
