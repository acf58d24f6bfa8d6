"""One spelling for many: what the rules see of a text."""

from __future__ import annotations

import re
import unicodedata

_INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\u00ad]")
_HAN = r"[\u3400-\u9fff]"
_GAP_BETWEEN_HAN = re.compile(rf"(?<={_HAN})\s+(?={_HAN})")
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "`": "'", "´": "'"})


def normalise(text: str) -> str:
    """NFKC, lower case, invisible characters out, white space folded, and none left between two Han characters."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))).lower()
    return _GAP_BETWEEN_HAN.sub("", " ".join(text.split()))
