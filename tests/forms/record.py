"""What a form may say when it is asked for."""

__all__ = ["NotMade"]


class NotMade(Exception):
    """The tool that writes this form does not write it of this family; the text is the reason."""
