"""Text that others wrote, as a figure, a table or a file can hold it."""

import re

# C0 without tab and line feed, DEL, what turns the direction of the text after it, and what XML has no place for: a
# picture ends at the first of these, a file refuses it, a label around it is read in another order
_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def readable(text: str) -> str:
    r"""The same text with control characters written out, such as \x1b; tabs and line feeds stay."""
    return _UNWRITABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
