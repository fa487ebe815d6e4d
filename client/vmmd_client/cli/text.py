r"""Text of others, made safe for a terminal.

Names of VMs come from whoever made them, messages quote them, and a guest writes what it likes on its console. A
terminal obeys control characters, so none of theirs reaches it: they are shown as Python writes them (`\x1b`). JSON
needs none of this, since json.dumps writes such characters as escapes.
"""

import codecs


def one_line(text: str) -> str:
    """Give the text with everything that is not printable written as an escape, newlines included."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


class ConsoleText:
    """Turns a guest's bytes, as they come, into text that a terminal can be given.

    Newlines and tabs pass, and a carriage return in front of a newline; bytes that are no UTF-8 become U+FFFD. A
    character that arrives in two pieces is put together.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def take(self, data: bytes, *, last: bool = False) -> str:
        """Give the text for the next bytes; with `last` also what is still held back."""
        text = self._held + self._decoder.decode(data, final=last)
        self._held = ""
        if text.endswith("\r") and not last:
            text, self._held = text[:-1], "\r"
        pieces = text.replace("\r\n", "\n").split("\n")
        return "\n".join("\t".join(one_line(part) for part in piece.split("\t")) for piece in pieces)
