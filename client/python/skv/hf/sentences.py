"""Where the sentences of a growing token sequence end, by ICU's sentence rules.

An end is a token offset (the position after the last token of a sentence). An end is *final* when no
text that may still follow can change it; the daemon cuts only what is final (SentenceCut in
docs/architecture.md), so the cut does not depend on how a text arrived.
"""
from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any, Optional, Sequence

# A boundary inside known text depends on what follows only by one rule of Unicode annex 29: after a
# full stop the sentence goes on if the next letter, however far, is a small one (SB8). So a boundary
# that is there before a small and before a capital letter is final; all others wait.
_PROBES = ("a", "A")
_REPLACEMENT = "\ufffd"  # what decoders print for the first bytes of an unfinished character


class SentenceEnds:
    """Collects tokens, tells the ends that became final.

    Units   ends and positions are tokens, `_starts` and `_stops` characters of the text so far.
    Thread  the owner's. Plain value type.

    Without a tokenizer there is no text and no end: sentences then close at their largest size.
    """

    def __init__(self, tokenizer: Any = None, locale: str = "en_US") -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._starts: list[int] = []  # of each token, characters
        self._stops: list[int] = []
        self._text = ""  # from `_base` on; what is before it is final and forgotten
        self._base = 0
        self._last_end = 0
        self._decoded_from = 0  # tokens [_decoded_from, _read) give context to the decoder
        self._read = 0  # tokens whose text is known
        self._iterator = None
        if tokenizer is not None:
            try:
                import icu
            except ImportError as error:
                raise ImportError("sentence ends need PyICU (scripts/venv.sh installs it)") from error
            self._unicode_string = icu.UnicodeString
            self._iterator = icu.BreakIterator.createSentenceInstance(icu.Locale(locale))

    @property
    def token_count(self) -> int:
        return len(self._ids)

    def feed(self, ids: Sequence[int], text: Optional[str] = None,
             offsets: Optional[Sequence[tuple[int, int]]] = None) -> tuple[list[int], int]:
        """Adds tokens. With `text` and `offsets` (the tokenizer's offset mapping of exactly these
        ids) characters are taken from there, else the tokens are decoded one by one.

        Returns (ends that became final, final_to): no end at or before final_to will come any more.
        """
        ids = [int(token) for token in ids]
        if self._iterator is None:
            self._ids += ids
            return [], len(self._ids)
        if text is None and len(ids) > 16 and self._read == len(self._ids):
            text, offsets = self._encode_again(ids)
        if text is not None and offsets is not None and self._read == len(self._ids):
            if len(offsets) != len(ids):
                raise ValueError(f"{len(offsets)} offsets for {len(ids)} tokens")
            self._take_offsets(ids, text, offsets)
        else:
            for token in ids:
                self._take_decoded(token)
        return self._settle()

    def _encode_again(self, ids: list[int]) -> tuple[Optional[str], Optional[list[tuple[int, int]]]]:
        """Text and offsets of tokens that came without: taken if encoding the text gives them back."""
        text = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if not getattr(self._tokenizer, "is_fast", False):
            return None, None
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if encoded["input_ids"] != ids:
            return None, None
        return text, encoded["offset_mapping"]

    def _take_offsets(self, ids, text, offsets) -> None:
        at = self._base + len(self._text)
        self._ids += ids
        for start, stop in offsets:
            self._starts.append(at + start)
            self._stops.append(at + stop)
        self._text += text
        self._decoded_from = max(len(self._ids) - 8, 0)
        self._read = len(self._ids)

    def _take_decoded(self, token: int) -> None:
        """A token can be a part of a character: its text comes with the token that completes it."""
        self._ids.append(token)
        start = self._base + len(self._text)
        decode = self._tokenizer.decode
        known = decode(self._ids[self._decoded_from:self._read], clean_up_tokenization_spaces=False)
        now = decode(self._ids[self._decoded_from:], clean_up_tokenization_spaces=False)
        self._starts.append(start)
        self._stops.append(start + 1)
        # Four tokens can be one character; more that decode to nothing whole are not text.
        if not now.endswith(_REPLACEMENT) or len(self._ids) - self._read > 4:
            self._text += now[len(known):]
            stop = self._base + len(self._text)
            # As in an offset mapping: each token of one character spans all of it.
            self._stops[self._read:] = [stop] * (len(self._ids) - self._read)
            self._decoded_from = self._read
            self._read = len(self._ids)

    def _boundaries(self, text: str) -> list[int]:
        """Boundaries inside `text` (its end is none), as Python indices."""
        # ICU counts UTF-16 units; they differ from Python's indices only beyond the first plane.
        unicode_string = self._unicode_string(text)
        self._iterator.setText(unicode_string)
        found = [b for b in self._iterator if 0 < b < len(unicode_string)]
        if len(unicode_string) == len(text):
            return found
        unit, index_of = 0, {}
        for index, character in enumerate(text):
            index_of[unit] = index
            unit += 2 if ord(character) > 0xFFFF else 1
        return [index_of[b] for b in found if b in index_of]

    def _settle(self) -> tuple[list[int], int]:
        text = self._text
        sure, other = (self._boundaries(text + probe) for probe in _PROBES)
        same = 0
        while same < min(len(sure), len(other)) and sure[same] == other[same]:
            same += 1
        # A boundary right at the end of the text is one only until a space or a bracket follows.
        final = [b for b in sure[:same] if b < len(text)]
        settled = min([b for b in sure[same:] + other[same:]] + [len(text)])

        ends = []
        for boundary in final:
            end = self._end_token(boundary)
            if end > self._last_end:
                ends.append(end)
                self._last_end = end
        # A later boundary lies at `settled` or behind it, its sentence's last letter maybe before it.
        last_letter = self._base + len(text[:settled].rstrip())
        final_to = max(bisect_left(self._starts, last_letter) - 1, self._last_end, 0)
        if final:
            self._text = text[final[-1]:]
            self._base += final[-1]
        return ends, min(final_to, len(self._ids))

    def _end_token(self, boundary: int) -> int:
        """Tokens of the sentences before a boundary: up to the last letter, and spaces of their own."""
        last_letter = self._base + len(self._text[:boundary].rstrip())
        return max(bisect_left(self._starts, last_letter),
                   bisect_right(self._stops, self._base + boundary))
